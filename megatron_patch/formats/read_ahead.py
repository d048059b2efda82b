"""Let the disk work while Python imports: files go into the page cache before anything can read them."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

_MOST = 4 << 30  # bytes; disks read no more while torch is imported
_STEP = 256 << 10  # bytes; of a longer wish Linux grants some disks only the beginning


@contextmanager
def read_ahead(files: Iterable[Path]) -> Iterator[None]:
    """Have the beginnings of `files`, in their order, read into the page cache until the block ends.

    It is a wish, of at most a quarter of the free memory: whoever reads the files later reads what has not come. A file
    that cannot be read is left to them, who say so.
    """
    ended = threading.Event()
    reader = threading.Thread(target=_ask, args=(list(files), ended), name="read-ahead", daemon=True)
    reader.start()
    try:
        yield
    finally:
        ended.set()
        reader.join()


def _ask(files: list[Path], ended: threading.Event) -> None:
    left = min(_MOST, psutil.virtual_memory().available // 4)
    for path in files:
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except OSError:
            continue
        try:
            for start in range(0, min(left, os.fstat(descriptor).st_size), _STEP):
                if ended.is_set():
                    return
                os.posix_fadvise(descriptor, start, _STEP, os.POSIX_FADV_WILLNEED)
                left -= _STEP
        finally:
            os.close(descriptor)
