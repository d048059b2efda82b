"""Many imports at a process's start, without the garbage collector that looks through what they bring."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def many_imports() -> Iterator[None]:
    """Import inside what stays until the process ends.

    It grows all the time, so the collector begins again and again, and finds nothing: a tenth of the seconds that torch and
    megatron-core take. Afterwards it does not look at these objects any more, in this process and in those forked from it.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
