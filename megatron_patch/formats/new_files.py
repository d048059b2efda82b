"""Writing new files by several threads, each a part at a time, past the page cache where the file system takes it.

A thread makes the bytes of a part in its own memory and writes them. So some threads read while others write, and the
disk always has both to do. Files are flushed, and the first error stops all.
"""

from __future__ import annotations

import os
import threading
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from megatron_patch.errors import named, naming
from megatron_patch.formats.past_cache import (
    BLOCK,
    aligned_memory,
    go_past_the_cache,
    go_through_the_cache,
    goes_past_the_cache,
    hand_to_the_disk,
    reading_past_the_cache,
    reserve,
    whole_blocks,
)

PART_BYTES = 2 << 20  # of a large tensor, that one thread makes at a time
THREADS = 8  # four reads and four writes on their way are as fast as a disk gets; memory is twice PART_BYTES for each
_WRITE_BACK = 64 << 20  # bytes after which the cache's dirty pages are handed to the disk


class Cancelled(RuntimeError):
    """This part was given up because another one failed. The other one's error is the one to report."""


@dataclass(eq=False)
class Part:
    """Bytes of a new file that one thread makes and writes.

    Writes are of whole blocks. A block in which one part ends and the next begins is written with the next.
    """

    position: int  # of its first byte in the file
    size: int  # bytes
    fill: Callable[[memoryview], None]  # makes them
    is_summed: bool
    before: Part | None  # the part whose last bytes lie in this one's first block
    # The bytes that the next part writes with its own, and the CRC-32 if it is asked for.
    _made: Future[tuple[bytes, int]] = field(default_factory=Future)

    def crc(self) -> int:
        """Its CRC-32, as soon as its bytes are made. Only a later part may wait for it.

        Raises:
            Cancelled: they will not be made.
        """
        return self._made.result()[1]

    def make(self, memory: memoryview, is_last: bool) -> memoryview:
        """Make its bytes; returns the whole blocks to write, from that on in which it begins.

        Args:
            memory: in which they are made; where they have no room in it, memory of their own is taken.
            is_last: of its file; its last block is then filled up with zeros.
        """
        skip = self.position % BLOCK
        end = skip + self.size
        try:
            buffer = memory if whole_blocks(end) <= len(memory) else aligned_memory(whole_blocks(end))
            self.fill(buffer[skip:end])
            crc = zlib.crc32(buffer[skip:end]) if self.is_summed else 0
            stop = whole_blocks(end) if is_last else end // BLOCK * BLOCK
            if stop:  # the next part need not wait until this one's beginning is there
                self._made.set_result((bytes(buffer[stop:end]), crc))
            if self.before is not None:
                buffer[:skip] = self.before._made.result()[0]
                self.before = None
            if not stop:
                self._made.set_result((bytes(buffer[:end]), crc))
        finally:
            if not self._made.done():
                self._made.set_exception(Cancelled())
        buffer[end:stop] = bytes(max(0, stop - end))
        return buffer[:stop]


class NewFile:
    """A file that is to be written: its parts are added, from its start to its end, then `write_new_files` does it.

    Args:
        keeps_cache: whether it goes through the page cache and stays there, for a run that may read it soon.

    Attributes:
        size: bytes of the parts so far.
    """

    def __init__(self, path: Path, keeps_cache: bool = False) -> None:
        self.path, self.size, self._keeps_cache = path, 0, keeps_cache
        self.parts: deque[Part] = deque()
        self._descriptor: int | None = None
        self._left = self._cached = 0
        self._lock = threading.Lock()

    def add(self, size: int, fill: Callable[[memoryview], None], is_summed: bool = False) -> Part:
        """Append a part of `size` bytes, which `fill` will make, in whichever thread."""
        before = self.parts[-1] if self.size % BLOCK else None
        part = Part(self.size, size, fill, is_summed, before)
        self.parts.append(part)
        self.size += size
        return part

    def add_bytes(self, data: bytes) -> None:
        """Append `data`."""
        if not data:
            return

        def fill(out: memoryview) -> None:
            out[:] = data

        self.add(len(data), fill)

    def open(self) -> None:
        """Create it.

        Raises:
            OSError: it is there already, or cannot be created, or the disk has no room for it.
        """
        self._left = len(self.parts)
        self._descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        if not self._keeps_cache and go_past_the_cache(self._descriptor):
            with naming(self.path):
                reserve(self._descriptor, whole_blocks(self.size))

    def write(self, data: memoryview, position: int) -> None:
        """Write a part's blocks to their place; with the last part of all the file is flushed and closed.

        Raises:
            OSError: the disk is full or fails. It names the file.
        """
        try:
            self._write(data, position)
            with self._lock:
                self._left -= 1
                is_whole = self._left == 0
            if is_whole:
                assert self._descriptor is not None, "parts are left"
                os.ftruncate(self._descriptor, self.size)
                os.fsync(self._descriptor)
                self.close()
        except OSError as error:
            named(error, self.path)
            raise

    def _write(self, data: memoryview, position: int) -> None:
        assert self._descriptor is not None, "parts are left"
        while len(data):
            goes_past = goes_past_the_cache(self._descriptor)  # another thread may take it back meanwhile
            try:
                count = os.pwrite(self._descriptor, data, position)
            except OSError as error:
                if not goes_past:
                    raise
                # Refused by the file system, or the disk has filled up within a block.
                go_through_the_cache(self._descriptor, error)
                continue
            data, position = data[count:], position + count
            if not goes_past_the_cache(self._descriptor):
                self._hand_over(count)

    def _hand_over(self, count: int) -> None:
        """Let the disk write what the cache holds, from time to time: the flush at the end is then short.

        A file that stays in the cache is waited for, so that what is counted as written has left it but for the last
        pieces. One that does not stay leaves room there for others.
        """
        with self._lock:
            self._cached += count
            is_much = self._cached >= _WRITE_BACK
            if is_much:
                self._cached = 0
        if not is_much or self._descriptor is None:
            return
        if self._keeps_cache:
            hand_to_the_disk(self._descriptor)
        else:
            os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_DONTNEED)

    def close(self) -> None:
        """Close it, if it is open."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)


def write_new_files(files: Iterable[NewFile], on_bytes: Callable[[int], None], at_once: int = 1) -> None:
    """Write `files`, a few parts at a time.

    Args:
        files: each is asked for when the one before has been begun to its last part.
        on_bytes: is told each number of bytes that was written, from several threads.
        at_once: files whose parts are written in turn. Through the page cache the system writes one part of a file at a
            time.

    Raises:
        UserError, OSError: the first error of any part. The others stop at once.
    """
    cancelled, lock = threading.Event(), threading.Lock()
    opened: list[NewFile] = []
    parts = _in_turn(files, opened, at_once)

    def work() -> None:
        memory = aligned_memory(PART_BYTES + 2 * BLOCK)
        try:
            with reading_past_the_cache(PART_BYTES):
                while not cancelled.is_set():
                    with lock:  # so that a part begins after those that it may wait for
                        file, part, is_last = next(parts, (None, None, False))
                    if file is None or part is None:
                        return
                    file.write(part.make(memory, is_last), part.position // BLOCK * BLOCK)
                    on_bytes(part.size)
        except BaseException:
            cancelled.set()
            raise

    try:
        _run(work, cancelled)
    finally:
        for file in opened:
            file.close()


def _in_turn(files: Iterable[NewFile], opened: list[NewFile], at_once: int) -> Iterator[tuple[NewFile, Part, bool]]:
    """(file, part, whether it is the file's last): of `at_once` files in turn, each file's parts in their order.

    A file is created when it is due.
    """
    waiting, begun = iter(files), deque[NewFile]()
    while True:
        while len(begun) < at_once and (new := next(waiting, None)) is not None:
            opened.append(new)
            new.open()
            begun.append(new)
        if not begun:
            return
        file = begun.popleft()
        part = file.parts.popleft()
        if file.parts:
            begun.append(file)
        yield file, part, not file.parts


def _run(work: Callable[[], None], cancelled: threading.Event) -> None:
    """Run `work` in THREADS threads to their end.

    Raises:
        BaseException: the first error; one that is a consequence of another only where there is no other.
    """
    with ThreadPoolExecutor(THREADS, thread_name_prefix="write") as pool:
        futures = [pool.submit(work) for _ in range(THREADS)]
        try:
            errors = [future.exception() for future in futures]
        except BaseException:  # an interrupt while waiting: stop the writers before leaving
            cancelled.set()
            raise
    for error in sorted(filter(None, errors), key=lambda error: isinstance(error, Cancelled)):
        raise error
