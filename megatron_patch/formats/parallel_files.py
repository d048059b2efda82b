"""New files, written side by side and flushed to the disk; the first error stops all. Imports no torch."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from megatron_patch.errors import named

WORKERS = 2  # files at a time
_WRITE_BACK = 64 << 20  # bytes after which dirty pages are handed to the disk


class Cancelled(RuntimeError):
    """This file was stopped because another one failed. The other one's error is the one to report."""


class Sink:
    """A new file that is written once, from its start to its end, and flushed to the disk when it is closed.

    Dirty pages are handed to the disk every `_WRITE_BACK` bytes. So the flush at the end is short, and a checkpoint
    does not push everything else out of the page cache.

    Args:
        on_bytes: is told each number of bytes that was written.
        cancelled: stops the writing when it is set.
        keeps_cache: whether the file stays in the page cache, for a run that may read it soon.
    """

    def __init__(
        self, path: Path, on_bytes: Callable[[int], None], cancelled: threading.Event, keeps_cache: bool = False
    ) -> None:
        self.path, self._on_bytes, self._cancelled, self._keeps_cache = path, on_bytes, cancelled, keeps_cache
        self.position = self._handed_over = 0
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)

    def write(self, data: bytes | memoryview) -> int:
        """Append `data`; returns its number of bytes.

        Raises:
            Cancelled: another file has failed.
        """
        if self._cancelled.is_set():
            raise Cancelled(str(self.path))
        view = memoryview(data).cast("B")
        while len(view):
            try:
                count = os.write(self._descriptor, view)
            except OSError as error:
                named(error, self.path)
                raise
            view = view[count:]
            self.position += count
            self._on_bytes(count)
        if not self._keeps_cache and self.position - self._handed_over >= _WRITE_BACK:
            os.posix_fadvise(self._descriptor, self._handed_over, self.position - self._handed_over, os.POSIX_FADV_DONTNEED)
            self._handed_over = self.position
        return len(data)

    def __enter__(self) -> Sink:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                os.fsync(self._descriptor)
        except OSError as error:
            named(error, self.path)
            raise
        finally:
            os.close(self._descriptor)


def write_side_by_side(
    folder: Path,
    files: Sequence[tuple[str, Callable[[Sink], object]]],
    on_bytes: Callable[[int], None],
    workers: int = WORKERS,
    keeps_cache: bool = False,
) -> None:
    """Write `files` into `folder`.

    Args:
        files: the name of each, and what writes it.
        on_bytes: is told each number of bytes that was written, from several threads.
        workers: files at a time.
        keeps_cache: as in `Sink`.

    Raises:
        UserError, OSError: the first error of any file. The other files stop at once.
    """
    cancelled = threading.Event()

    def write_one(name: str, write: Callable[[Sink], object]) -> None:
        try:
            with Sink(folder / name, on_bytes, cancelled, keeps_cache) as sink:
                write(sink)
        except BaseException:
            cancelled.set()
            raise

    with ThreadPoolExecutor(workers, thread_name_prefix="write") as pool:
        futures = [pool.submit(write_one, name, write) for name, write in files]
        try:
            errors = [future.exception() for future in futures]
        except BaseException:  # an interrupt while waiting: stop the writers before leaving
            cancelled.set()
            raise
    for error in sorted(filter(None, errors), key=lambda error: isinstance(error, Cancelled)):
        raise error
