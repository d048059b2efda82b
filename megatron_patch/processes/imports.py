"""Many imports at a process's start, without the garbage collector that looks through what they bring."""

from __future__ import annotations

import atexit
import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def many_imports() -> Iterator[None]:
    """Import inside what stays until the process ends.

    It only grows, so the collector begins again and again, and finds nothing: a sixth of the seconds that torch and
    megatron-core take. Afterwards it does not look at these objects any more, nor in processes that are forked. At the
    end it does, since Triton's library prints what nobody has collected.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
        atexit.register(gc.unfreeze)
