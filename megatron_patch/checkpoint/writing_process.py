"""The process that writes a rank's files of a checkpoint beside the training, out of memory that both share.

It imports no torch and knows no group: the ranks agree among themselves when all have written, and the first rank's
process then makes a checkpoint of the folder. It ends with its rank, which the kernel sees to. A terminal's or a
platform's signals do not end it, because the rank waits for it.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import mmap
import os
import struct
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from megatron_patch.checkpoint.finish import Ending, finish, tidy
from megatron_patch.checkpoint.housekeeping import remove_left_over
from megatron_patch.errors import UserError, refusal
from megatron_patch.formats.new_files import PART_BYTES, NewFile, write_new_files
from megatron_patch.formats.tensor_archive import add_archive
from megatron_patch.processes.parents import end_with_parent

COUNTER = 8  # bytes behind the memory of the state, in which the process counts the bytes that it has written
_NICE = 10  # the training comes first


@dataclass(frozen=True)
class StagedPart:
    """A tensor in the shared memory.

    Attributes:
        description: its archive's `data.pkl`.
        size: its bytes in the file.
        places: its first byte in the memory; of an fp32 tensor that is kept as halves, that of the upper 16 bits and
            that of the 16 bits which these lack.
    """

    description: bytes
    size: int
    places: tuple[int, ...]


@dataclass(frozen=True)
class Job:
    """What a rank writes.

    Attributes:
        folder: where.
        files: name → its tensors.
        objects: name → bytes of a file without tensors.
    """

    folder: Path
    files: dict[str, list[StagedPart]]
    objects: dict[str, bytes]


@dataclass(frozen=True)
class Tidying:
    """What follows when a checkpoint is complete: `tidy`."""

    ending: Ending


@dataclass(frozen=True)
class Answer:
    """What became of a request.

    Attributes:
        refusal: why it could not be done; empty if it was.
        places: file → (first byte, bytes) of each tensor in it.
        warnings: what the user is to be told.
        seconds: that it took.
    """

    refusal: str
    places: dict[str, list[tuple[int, int]]]
    warnings: list[str]
    seconds: float = 0.0


class _Writer:
    """Does what the rank asks for.

    Args:
        memory: of the state, and `COUNTER` bytes more.
    """

    def __init__(self, memory: mmap.mmap) -> None:
        self._memory = memory
        self._written = 0

    def write(self, job: Job) -> dict[str, list[tuple[int, int]]]:
        """Write `job`'s files side by side, each flushed to the disk."""
        self._written = 0
        places: dict[str, list[tuple[int, int]]] = {}
        files = []
        for name, parts in job.files.items():
            files.append(NewFile(job.folder / name, keeps_cache=True))
            places[name] = [add_archive(files[-1], part.description, self._pieces(part)) for part in parts]
        for name, data in job.objects.items():
            files.append(NewFile(job.folder / name, keeps_cache=True))
            files[-1].add_bytes(data)
        write_new_files(files, self._count, at_once=len(files))
        return places

    def _count(self, count: int) -> None:
        """Tell the rank how far it is, without a lock: a number that is a piece too small does no harm."""
        self._written += count
        struct.pack_into("<q", self._memory, len(self._memory) - COUNTER, self._written)

    def _pieces(self, part: StagedPart) -> Iterator[tuple[int, Callable[[memoryview], None]]]:
        """The part's bytes, a piece at a time."""
        dtype = np.uint8 if len(part.places) == 1 else np.int16
        count = part.size if len(part.places) == 1 else part.size // 4
        sources = [np.frombuffer(self._memory, dtype, count, place) for place in part.places]
        step = PART_BYTES if len(part.places) == 1 else PART_BYTES // 4
        for first in range(0, count, step):
            pieces = [source[first : first + step] for source in sources]
            yield len(pieces[0]) * (PART_BYTES // step), functools.partial(_fill, pieces)


def _fill(pieces: list[np.ndarray], out: memoryview) -> None:
    """Copy bytes; or put fp32 numbers together of their upper 16 bits and what these lack, as `join_float32` does.

    numpy lets go of Python's lock meanwhile.
    """
    if len(pieces) == 1:
        np.copyto(np.frombuffer(out, np.uint8), pieces[0])
        return
    upper, lower = pieces
    values = np.frombuffer(out, np.int32)
    np.copyto(values, upper)
    values <<= 16
    values += lower


class _Warnings(logging.Handler):
    """Keeps what this program warns of, for the rank to tell."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.kept: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep it."""
        self.kept.append(record.getMessage())


def serve(connection: Connection, memory: mmap.mmap) -> None:
    """Do what the rank asks for, one after the other, until it closes the connection, or has ended."""
    warnings, writer = _Warnings(), _Writer(memory)
    logging.getLogger("megatron_patch").addHandler(warnings)
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            request = connection.recv()
            warnings.kept, began = [], time.monotonic()
            places, refused = {}, ""
            try:
                if isinstance(request, Job):
                    places = writer.write(request)
                elif isinstance(request, Ending):
                    finish(request)
                elif isinstance(request, Tidying):
                    tidy(request.ending)
                else:
                    remove_left_over(request)
            except UserError as error:
                refused = str(error)
            except OSError as error:
                refused = refusal(error)
            connection.send(Answer(refused, places, warnings.kept, time.monotonic() - began))


def main(argv: list[str]) -> None:
    """argv: the rank's process number, descriptors of the memory and of the connection, bytes of the memory."""
    parent, memory, connection, size = map(int, argv)
    end_with_parent(parent)
    os.nice(_NICE)
    serve(Connection(connection), mmap.mmap(memory, size))


if __name__ == "__main__":
    # Under the name by which requests are pickled.
    from megatron_patch.checkpoint import writing_process

    writing_process.main(sys.argv[1:])
