"""core's files of sample indices, read as arrays and as nothing else.

core loads them with `allow_pickle`, and numpy unpickles whatever does not begin as an array does: a file that was put
among them would run at a run's next start. core 0.19 allows a list of classes, numpy's among them, which are enough to
make numpy take bytes for pointers.
"""

from __future__ import annotations

from tokenize import TokenError
from types import ModuleType
from typing import Any

import numpy

# What numpy raises for headers that are no description of an array, besides ValueError.
_OF_HEADERS = (TokenError, SyntaxError, TypeError, OverflowError, AttributeError, RecursionError, MemoryError)


def load_array(path: Any, **options: Any) -> numpy.ndarray[Any, Any]:
    """The array in `path`, mapped into memory, as `numpy.load` gives it with `mmap_mode="r"`.

    Args:
        options: what core passes; they change nothing.

    Raises:
        ValueError: the file holds something else, a pickle or an archive of arrays say.
    """
    try:
        return numpy.lib.format.open_memmap(path, mode="r")
    except _OF_HEADERS as error:
        raise ValueError(str(error)) from None


class _Numpy(ModuleType):
    """numpy with another `load`."""

    load = staticmethod(load_array)

    def __getattr__(self, name: str) -> Any:
        return getattr(numpy, name)


NUMPY = _Numpy("numpy")
