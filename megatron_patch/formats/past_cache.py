"""Reading and writing past the system's page cache, where the file system takes it.

Through the cache the processor copies every byte once more, and threads of the system write it back on the same cores.
Past it the disk moves bytes from and to memory itself. For that it wants places, lengths and memory in whole blocks.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import threading
from collections.abc import Iterator

import numpy as np

BLOCK = 4096  # bytes; no disk has larger ones
_DIRECT, _AT_ONCE = getattr(os, "O_DIRECT", 0), getattr(os, "RWF_NOWAIT", 0)  # Linux has them
_REFUSED = (errno.EINVAL, errno.EOPNOTSUPP)
_NOT_THERE = (*_REFUSED, errno.ENOSYS, errno.EINTR)
_WAIT_BEFORE, _WRITE = 1, 2  # flags of Linux' sync_file_range
_of_thread = threading.local()


def whole_blocks(size: int) -> int:
    """`size` rounded up to whole blocks."""
    return -(-size // BLOCK) * BLOCK


def aligned_memory(size: int) -> memoryview:
    """`size` bytes that begin where a block may. They take no memory until they are written."""
    return memoryview(mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))


def go_past_the_cache(descriptor: int) -> bool:
    """Let reads or writes of an open file pass the cache by; returns whether its file system takes that."""
    if not _DIRECT:
        return False
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETFL, fcntl.fcntl(descriptor, fcntl.F_GETFL) | _DIRECT)
    except OSError as error:
        if error.errno not in _REFUSED:
            raise
        return False
    return True


def reserve(descriptor: int, size: int) -> None:
    """Let the disk set aside `size` bytes for a new file that goes past the cache, where its file system can.

    Writes that make a file longer wait for each other. Where `size` bytes are set aside, none does: 1.6 times the speed
    on ext4.

    Raises:
        OSError: there is no room for them.
    """
    # Not os.posix_fallocate: where the file system cannot, glibc writes a byte into each block instead. Over NFS these
    # are a million requests for a file of 5 GB, one after the other.
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.fallocate(descriptor, 0, ctypes.c_int64(0), ctypes.c_int64(size)):
        number = ctypes.get_errno()
        if number not in _NOT_THERE:
            raise OSError(number, os.strerror(number))


def hand_to_the_disk(descriptor: int) -> None:
    """Wait until the disk has what it was handed before of a file, and hand it what the page cache has got since.

    So the disk always has something to write, and what it lacks stays little: the flush at the end is short.

    Raises:
        OSError: the disk is full or fails. A later flush of the file would not say it again.
    """
    call = getattr(ctypes.CDLL(None, use_errno=True), "sync_file_range", None)  # Linux has it
    if call is not None:
        if not call(descriptor, ctypes.c_int64(0), ctypes.c_int64(0), _WAIT_BEFORE | _WRITE):
            return
        if (number := ctypes.get_errno()) not in _NOT_THERE:
            raise OSError(number, os.strerror(number))
    if hasattr(os, "fdatasync"):
        os.fdatasync(descriptor)


def goes_past_the_cache(descriptor: int) -> bool:
    """Whether `go_past_the_cache` was asked of an open file, and `go_through_the_cache` not since."""
    return bool(fcntl.fcntl(descriptor, fcntl.F_GETFL) & _DIRECT)


def go_through_the_cache(descriptor: int, error: OSError) -> None:
    """Take `go_past_the_cache` back, since a read or write past the cache was refused with `error`.

    Raises:
        OSError: `error` itself, where it has another reason.
    """
    if error.errno not in _REFUSED:
        raise error
    fcntl.fcntl(descriptor, fcntl.F_SETFL, fcntl.fcntl(descriptor, fcntl.F_GETFL) & ~_DIRECT)


@contextlib.contextmanager
def reading_past_the_cache(size: int) -> Iterator[None]:
    """This thread's tensors are read past the cache inside, about `size` bytes at a time.

    Training does not ask for it: the processes of a machine read the same files, and the first brings them into memory.
    """
    _of_thread.buffer = aligned_memory(whole_blocks(size) + BLOCK)
    try:
        yield
    finally:
        del _of_thread.buffer


def open_to_read(path: str | os.PathLike[str]) -> int:
    """A descriptor for `read_some`."""
    return os.open(path, os.O_RDONLY)


def read_some(descriptor: int, view: memoryview, position: int) -> int:
    """Read an open file from byte `position` on into the beginning of `view`; returns how many bytes, 0 at the end.

    A thread that reads past the cache takes from it what is there: a file that has just come, or was read ahead.
    """
    buffer = getattr(_of_thread, "buffer", None)
    if buffer is None:
        return os.preadv(descriptor, [view], position)
    if not goes_past_the_cache(descriptor):
        there = _from_the_cache(descriptor, view, position)
        if there is not None:
            return there
        go_past_the_cache(descriptor)
    if goes_past_the_cache(descriptor):
        try:
            return _read_blocks(descriptor, view, position, buffer)
        except OSError as error:
            go_through_the_cache(descriptor, error)
    return os.preadv(descriptor, [view], position)


def _from_the_cache(descriptor: int, view: memoryview, position: int) -> int | None:
    """As `read_some`, of what can be had without the disk; None where the first byte cannot."""
    if not _AT_ONCE:
        return None
    try:
        return os.preadv(descriptor, [view], position, _AT_ONCE)
    except OSError as error:
        if error.errno not in (*_REFUSED, errno.EAGAIN):
            raise
    return None


def _read_blocks(descriptor: int, view: memoryview, position: int, buffer: memoryview) -> int:
    """As `read_some`, in whole blocks: into `view` itself where blocks begin with it, else by `buffer`."""
    bytes_of_view = np.frombuffer(view, np.uint8)
    before = position % BLOCK
    if before == 0 and len(view) >= BLOCK and bytes_of_view.ctypes.data % BLOCK == 0:
        return os.preadv(descriptor, [view[: len(view) // BLOCK * BLOCK]], position)
    wanted = min(len(buffer), whole_blocks(before + len(view)))
    count = os.preadv(descriptor, [buffer[:wanted]], position - before) - before
    count = max(0, min(count, len(view)))
    # numpy lets go of Python's lock while it copies; a slice of a memoryview does not.
    np.copyto(bytes_of_view[:count], np.frombuffer(buffer, np.uint8)[before : before + count])
    return count
