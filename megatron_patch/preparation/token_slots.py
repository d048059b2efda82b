"""Memory through which workers hand tokens to the main process, which writes them from there.

Through a pipe they would be copied four times in Python, and with many workers the main process would be what all of
them wait for.
"""

from __future__ import annotations

import itertools
import mmap
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cached_property
from multiprocessing import reduction
from typing import Any

_APART = 1 << 32  # bytes of a slot; memory is taken for what is written alone
_KEPT = 4 << 20  # bytes; a place that held more gives its memory back


@dataclass(frozen=True)
class Slot:
    """`size` bytes of tokens in a place of the memory."""

    number: int
    size: int


class TokenSlots(AbstractContextManager["TokenSlots"]):
    """Places that are used in turn. The object may be an argument of a process that is spawned.

    Args:
        count: of the places; what is in one must have been taken before it is used again.
    """

    def __init__(self, count: int, descriptor: int | None = None) -> None:
        self._count = count
        self._descriptor = os.memfd_create("tokens") if descriptor is None else descriptor
        os.ftruncate(self._descriptor, count * _APART)
        self._turns = itertools.cycle(range(count))

    def __reduce__(self) -> tuple[Callable[[int, Any], TokenSlots], tuple[int, Any]]:
        return _attached, (self._count, reduction.DupFd(self._descriptor))

    def next(self) -> int:
        """The number of the place that is used next."""
        return next(self._turns)

    def put(self, number: int, tokens: bytes) -> Slot | bytes:
        """Write `tokens` into a place; returns which, or the tokens themselves if no place is as large."""
        if len(tokens) > _APART:
            return tokens
        done, view = 0, memoryview(tokens)
        while done < len(tokens):
            done += os.pwrite(self._descriptor, view[done:], number * _APART + done)
        return Slot(number, len(tokens))

    @cached_property
    def _memory(self) -> mmap.mmap:
        return mmap.mmap(self._descriptor, self._count * _APART)

    @contextmanager
    def taken(self, found: Slot | bytes) -> Iterator[bytes | memoryview]:
        """The tokens that `put` took, as long as the block lasts."""
        if isinstance(found, bytes):
            yield found
            return
        begin = found.number * _APART
        with memoryview(self._memory) as whole, whole[begin : begin + found.size] as tokens:
            yield tokens
        if found.size > _KEPT:
            self._memory.madvise(mmap.MADV_REMOVE, begin, found.size)

    def __exit__(self, *_: object) -> None:
        """Let go of the memory; workers must have ended."""
        self._memory.close()
        os.close(self._descriptor)


def _attached(count: int, descriptor: Any) -> TokenSlots:
    return TokenSlots(count, descriptor.detach())
