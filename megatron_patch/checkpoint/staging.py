"""Host memory that holds a rank's state while a process writes it, and the copy into it beside the next step.

What is copied is the state as it lies on the device: where fp32 weights are kept as bf16 weights and the 16 bits that
these lack, the halves, since the gradient buffers in which they could be put together are the next step's. On GPUs the
copy runs on a stream of its own, and the next update waits for it on the device. What there is of free memory on the
GPU takes a first copy of a part, so that the update waits for less.
"""

from __future__ import annotations

import megatron_patch.core.device as device

import bisect
import contextlib
import ctypes
import mmap
import os
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch

from megatron_patch.checkpoint.contents import Contents, Part
from megatron_patch.checkpoint.writing_process import COUNTER, StagedPart
from megatron_patch.formats.distcp import describe

_ALIGNMENT = 64  # bytes
_PIECE = 128 << 20  # bytes that are pinned at a time, and that no copy goes beyond
_KEPT_FREE = 4 << 30  # bytes of the GPU that a first copy leaves
_MOST_ON_GPU = 4  # a first copy takes at most one part in so many of the state
_POPULATE_WRITE = 23  # Linux' MADV_POPULATE_WRITE
_PAGES = 2 << 20  # bytes that are given their pages at a time

Halves = Iterable[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]
_Copies = list[tuple[torch.Tensor, torch.Tensor]]  # (from, to), uint8


@dataclass(frozen=True)
class _Range:
    """Bytes of the device's memory: the first one's address, how many, and a tensor whose storage they lie in."""

    start: int
    size: int
    inside: torch.Tensor

    @property
    def end(self) -> int:
        return self.start + self.size

    def view(self, first: int, size: int) -> torch.Tensor:
        """`size` of the bytes from the `first` on, uint8."""
        storage = self.inside.untyped_storage()
        nothing = torch.empty(0, dtype=torch.uint8, device=self.inside.device)
        return nothing.set_(storage, self.start + first - storage.data_ptr(), (size,), (1,))


class Layout:
    """Which bytes are copied, and where in the host's memory each part then lies.

    Tensors that lie behind each other on the device are copied as one, and what two parts have in common once: in bf16
    the upper halves of fp32 weights are the model's weights.

    Args:
        contents: what this rank writes.
        halves: as of `Adam.halves`; parts that lie in the first of each triple are copied as the other two.

    Attributes:
        size: bytes of host memory.
        files: the files, for the process that writes them.
        ranges: what is copied, and the first byte of the host's memory that it is copied to.
        of: `contents.files`.
        signature: equal to another layout's if the same bytes are copied.
    """

    def __init__(self, contents: Contents, halves: Halves) -> None:
        self.of = contents.files
        kept = sorted(halves, key=lambda one: one[0].data_ptr())
        starts = [one[0].data_ptr() for one in kept]
        sources = {
            (number, place): _sources(part, kept, starts)
            for number, parts in enumerate(contents.files)
            for place, part in enumerate(parts)
        }
        merged = _merged(one for found in sources.values() for one in found)
        self.ranges: list[tuple[_Range, int]] = []
        self.size = 0
        for one in merged:
            self.ranges.append((one, self.size))
            self.size += -(-one.size // _ALIGNMENT) * _ALIGNMENT
        self.signature = [(one.start, one.size) for one in merged]
        addresses = [one.start for one in merged]

        def place_of(source: _Range) -> int:
            whole, first = self.ranges[bisect.bisect_right(addresses, source.start) - 1]
            return first + source.start - whole.start

        def staged(part: Part, found: list[_Range]) -> StagedPart:
            return StagedPart(describe(part.shape, part.values.dtype), part.values.nbytes, tuple(map(place_of, found)))

        self.files = {
            name: [staged(part, sources[number, place]) for place, part in enumerate(parts)]
            for number, (name, parts) in enumerate(zip(contents.names, contents.files))
        }


def _sources(part: Part, kept: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]], starts: list[int]) -> list[_Range]:
    """The memory that a part is read from: its own, or the two halves of what could be rebuilt in a gradient."""
    start, size = part.values.data_ptr(), part.values.nbytes
    found = bisect.bisect_right(starts, start) - 1
    if found >= 0 and part.values.dtype == torch.float32:
        gradient, copy, remainder = kept[found]
        first = (start - gradient.data_ptr()) // 4
        if first < gradient.numel():
            rest = slice(first, first + part.values.numel())
            return [_Range(half[rest].data_ptr(), size // 2, half) for half in (copy, remainder)]
    return [_Range(start, size, part.values)]


def _merged(ranges: Iterable[_Range]) -> list[_Range]:
    """`ranges` in the order of their addresses, those that touch within one storage as one."""
    found: list[_Range] = []
    for one in sorted(ranges, key=lambda one: one.start):
        last = found[-1] if found else None
        if last is not None and one.start <= last.end and _storage(one) == _storage(last):
            found[-1] = _Range(last.start, max(last.end, one.end) - last.start, last.inside)
        elif one.size:
            found.append(one)
    return found


def _storage(one: _Range) -> int:
    return one.inside.untyped_storage().data_ptr()


class Staging:
    """The memory of one layout, which another process may map.

    Attributes:
        descriptor: of the memory, whose last `COUNTER` bytes are the other process's.
        problem: why the memory cannot be used; empty as long as it can.
        lazy: for CPUs, which have no streams. True: the state is copied when an update is about to change it, which is
            as late as a GPU may copy it. Tests set it. False: it is copied at once.
    """

    lazy = False

    def __init__(self, layout: Layout) -> None:
        self.layout, self.problem = layout, ""
        self.descriptor = os.memfd_create("checkpoint", 0)
        os.ftruncate(self.descriptor, layout.size + COUNTER)
        self._memory = mmap.mmap(self.descriptor, layout.size + COUNTER)
        self._host = torch.frombuffer(self._memory, dtype=torch.uint8)
        self._is_pinned, self._is_waited_for = threading.Event(), threading.Event()
        self._pieces: list[int] = []  # addresses that were pinned
        self._first_copy = 0  # bytes
        self._may_update: torch.cuda.Event | None = None
        self._copied: torch.cuda.Event | None = None
        self._pending: _Copies = []  # on CPUs
        if device.HAS_CUDA:
            self._stream = torch.cuda.Stream()
            self._first_copy = self._room_on_gpu()
            threading.Thread(target=self._pin, args=(torch.cuda.current_device(),), name="pin", daemon=True).start()
        else:
            self._is_pinned.set()

    @property
    def size(self) -> int:
        """Bytes, the counter's among them."""
        return self.layout.size + COUNTER

    @property
    def written(self) -> int:
        """Bytes that the other process says it has written."""
        return int.from_bytes(self._memory[-COUNTER:], "little")

    def _room_on_gpu(self) -> int:
        """Bytes of the state that a first copy on the GPU takes."""
        free = torch.cuda.mem_get_info()[0] - _KEPT_FREE
        return max(0, min(free, self.layout.size // _MOST_ON_GPU))

    def _pin(self, number: int) -> None:
        """Give the memory its pages, and pin them, beside the training.

        Otherwise a copy into it would keep the host waiting. While the driver pins, nothing can be launched, and while
        pages are made, no thread can map memory. So both rest after each piece for as long as it took, unless a save
        waits already. Pages are made in smaller pieces.
        """
        base, size = self._host.data_ptr(), self._host.numel()
        why: object = None
        try:
            torch.cuda.set_device(number)
            libc = ctypes.CDLL(None)  # whose calls leave Python's lock to others

            def populate(first: int) -> int:
                for at in range(first, end := min(first + _PIECE, size), _PAGES):
                    began = time.perf_counter()
                    libc.madvise(ctypes.c_void_p(base + at), ctypes.c_size_t(min(_PAGES, end - at)), _POPULATE_WRITE)
                    self._is_waited_for.wait(time.perf_counter() - began)
                return first

            with ThreadPoolExecutor(4, thread_name_prefix="pages") as pool:
                for first in pool.map(populate, range(0, size, _PIECE)):
                    began = time.perf_counter()
                    status = torch.cuda.cudart().cudaHostRegister(base + first, min(_PIECE, size - first), 0)
                    if status != torch.cuda.cudart().cudaError.success:
                        why = status
                        break
                    self._pieces.append(base + first)
                    self._is_waited_for.wait(time.perf_counter() - began)
        except BaseException as error:
            why = error
            raise
        finally:  # whoever waits for it is not left waiting
            if why is not None:
                self.problem = f"the driver pins {len(self._pieces) * _PIECE} of {size} bytes ({why})"
            self._is_pinned.set()

    def wait_until_pinned(self) -> None:
        """Wait until the memory can be copied to beside the training, or `problem` says why it cannot."""
        self._is_waited_for.set()
        self._is_pinned.wait()

    def copy(self) -> None:
        """Begin to copy the state of this moment. The next update must be preceded by `before_update`."""
        copies = [(one.view(first, size), self._host[place : place + size]) for one, first, place, size in self._copies()]
        if not device.HAS_CUDA:
            self._pending = copies
            if not self.lazy:
                self._copy_pending()
            return
        early, late = self._divided(copies)
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            for source, target in early:
                target.copy_(source, non_blocking=True)
            self._may_update = torch.cuda.Event()
            self._may_update.record()
            for source, target in late:
                target.copy_(source, non_blocking=True)
                source.record_stream(self._stream)
            self._copied = torch.cuda.Event(blocking=True)
            self._copied.record()

    def _copy_pending(self) -> None:
        for source, target in self._pending:
            target.copy_(source)
        self._pending = []

    def _copies(self) -> Iterator[tuple[_Range, int, int, int]]:
        """(range, first of its bytes, place in the host's memory, bytes); none goes beyond a piece that was pinned."""
        for one, place in self.layout.ranges:
            first = 0
            while first < one.size:
                size = min(one.size - first, _PIECE - (place + first) % _PIECE)
                yield one, first, place + first, size
                first += size

    def _divided(self, copies: _Copies) -> tuple[_Copies, _Copies]:
        """`copies` that go straight to the host, and those whose source is a first copy on the GPU, made here."""
        early, late, room = list(copies), [], self._first_copy
        while early and early[-1][0].numel() <= room:
            source, target = early[-1]
            try:
                first = torch.empty_like(source)
            except torch.OutOfMemoryError:  # something else has taken the room since
                break
            late.append((first.copy_(source), target))
            early.pop()
            room -= source.numel()
        return early, late

    def before_update(self) -> None:
        """Let what is launched from now on wait until the state may change."""
        self._copy_pending()
        if self._may_update is not None:
            torch.cuda.current_stream().wait_event(self._may_update)
            self._may_update = None

    @property
    def is_copied(self) -> bool:
        """Whether the whole state is in the host's memory."""
        return not self._pending and (self._copied is None or self._copied.query())

    def wait_until_copied(self) -> None:
        """Wait for that."""
        self._copy_pending()
        if self._copied is not None:
            self._copied.synchronize()

    def close(self) -> None:
        """Let go of the memory."""
        self.wait_until_pinned()
        for address in self._pieces:
            torch.cuda.cudart().cudaHostUnregister(address)
        self._pieces = []
        with contextlib.suppress(OSError):
            os.close(self.descriptor)
