"""What the operating system refuses while a checkpoint is written: every rank gets to know, and nothing else happens.

torch's writer loses an error of its second thread, and turns one of its first into words about its own archive. So its
files are streams that keep the first refusal and drop the bytes behind it.
"""

from __future__ import annotations

import megatron_patch.core.device  # noqa: F401  prepares megatron-core for this machine

import contextlib
import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystem

from megatron_patch.core import parallel
from megatron_patch.errors import UserError, named


class SaveFailed(Exception):  # noqa: N818  an outcome of saving, not an error of this program
    """A checkpoint could not be written; those before it are as they were. Every rank raises it, with one sentence."""


def together(work: Callable[[], None]) -> None:
    """Do this rank's part of a save; every rank calls it, with a part of its own or with one that does nothing.

    Raises:
        SaveFailed: the operating system refused something on any rank, or a file is not as it was written.
    """
    try:
        parallel.all_or_none(lambda: _with_plain_errors(work))
    except UserError as error:
        raise SaveFailed(str(error)) from None


def _with_plain_errors(work: Callable[[], None]) -> None:
    """Do `work`; what the operating system refused torch's checkpointing is raised as what it is."""
    try:
        work()
    except CheckpointException as error:  # torch's for an error of any rank; it is a BaseException
        causes = [cause for cause, _ in error.failures.values()]
        if isinstance(causes[0], OSError):
            raise causes[0] from None
        raise


class RefusingFiles(FileSystem):
    """torch's files for a writer, each flushed to the disk when it is closed.

    Attributes:
        refused: what the operating system refused, in the order in which it did.
    """

    def __init__(self) -> None:
        super().__init__()
        self.refused: list[OSError] = []

    @contextlib.contextmanager
    def create_stream(self, path: str | os.PathLike, mode: str) -> Iterator[io.IOBase]:
        """A new file. Only writing is meant: `mode` is torch's, and always `wb` here."""
        assert mode == "wb", mode
        stream = _Stream(Path(path), self.refused)
        try:
            yield stream
        finally:
            stream.close()

    def raise_refused(self) -> None:
        """Raise the first refusal, if there was any."""
        if self.refused:
            raise self.refused[0]


class _Stream(io.RawIOBase):
    """A file that takes every byte; after a refusal it takes them to nowhere."""

    def __init__(self, path: Path, refused: list[OSError]) -> None:
        super().__init__()
        self._path, self._refused, self._position = path, refused, 0
        self._file: io.BufferedWriter | None = None
        with self._kept():
            self._file = open(path, "wb")  # noqa: SIM115  closed in `close`

    @contextlib.contextmanager
    def _kept(self) -> Iterator[None]:
        """Keep a refusal, and let go of the file."""
        try:
            yield
        except OSError as error:
            self._refused.append(named(error, self._path))
            file, self._file = self._file, None
            if file is not None:
                with contextlib.suppress(OSError):  # the bytes that it still holds are refused as well
                    file.close()

    def writable(self) -> bool:
        """True."""
        return True

    def tell(self) -> int:
        """The bytes taken so far."""
        return self._position

    def write(self, data: bytes | memoryview) -> int:  # type: ignore[override]
        """Append `data`; returns its number of bytes."""
        if self._file is not None:
            with self._kept():
                self._file.write(data)
        size = memoryview(data).nbytes
        self._position += size
        return size

    def close(self) -> None:
        """Wait until the bytes are on the disk, and close the file."""
        if self._file is not None:
            with self._kept():
                self._file.flush()
                os.fsync(self._file.fileno())
                self._file.close()
                self._file = None
        super().close()
