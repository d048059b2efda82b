"""Tensors that are read a few rows at a time, and only when somebody asks for them.

Conversion composes them: rows of a file, several one after the other or beside each other, cast to another dtype. Then
it streams the result. So memory holds one piece of one tensor, however large the tensor or the model is.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Protocol

import torch

from megatron_patch.errors import UserError, named
from megatron_patch.formats.checksums import Record
from megatron_patch.formats.past_cache import open_to_read, read_some

PIECE_BYTES = 1 << 20  # fits a core's cache; pieces of 16 MiB take the operating system twice the time


class LazyTensor(Protocol):
    """A tensor whose rows can be read."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its sizes; the first axis counts the rows."""

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in which `read` gives its values."""

    def read(self, first: int, last: int, out: torch.Tensor) -> None:
        """Copy rows `first` to `last` − 1 into `out` [last − first, …], which is contiguous and of this dtype.

        Raises:
            UserError: the file ends before them, or their values do not fit the dtype. The sentence names the tensor.
        """


@dataclass(frozen=True)
class FileTensor:
    """A tensor as contiguous, row-major, native-endian bytes of a file. The file is not mapped into memory."""

    path: Path
    name: str  # of the tensor, for errors
    offset: int  # of its first byte in the file
    shape: tuple[int, ...]
    dtype: torch.dtype
    record: Record | None = field(default=None, compare=False)  # the bytes with a sum around it, if any

    def read(self, first: int, last: int, out: torch.Tensor) -> None:
        row = prod(self.shape[1:]) * self.dtype.itemsize
        descriptor = open_to_read(self.path)
        try:
            read_bytes(descriptor, out, self.offset + first * row, self.path, self.name, self.record)
        finally:
            os.close(descriptor)


def read_bytes(descriptor: int, out: torch.Tensor, position: int, path: Path, name: str, record: Record | None = None) -> None:
    """Fill `out`, which is contiguous, with the bytes of an open file from byte `position` on.

    Args:
        record: the bytes with a sum that these are a part of; what was read is summed.

    Raises:
        UserError: the file ends before, or all of `record` has been read now and has another sum. The sentence names
            the file as `path`, and the tensor as `name`.
    """
    whole = view = out.view(-1).view(torch.uint8).numpy().data
    start = position
    while len(view):  # the system may give fewer bytes than it is asked for
        try:
            count = read_some(descriptor, view, position)
        except OSError as error:
            named(error, path)
            raise
        if count == 0:
            raise UserError(f"{path} ends inside tensor {name}; the file is truncated: copy it again.")
        view, position = view[count:], position + count
    if record is not None:
        record.note(start, whole)


@dataclass(frozen=True)
class InMemory:
    """A contiguous tensor, on any device."""

    values: torch.Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.values.shape)

    @property
    def dtype(self) -> torch.dtype:
        return self.values.dtype

    def read(self, first: int, last: int, out: torch.Tensor) -> None:
        out.copy_(self.values[first:last])


@dataclass(frozen=True)
class Strided:
    """A matrix [R, C] in a file whose rows have gaps between them: they begin `row_stride` elements apart."""

    storage: FileTensor  # one-dimensional, from the matrix's first element to its last
    shape: tuple[int, int]
    row_stride: int

    @property
    def dtype(self) -> torch.dtype:
        return self.storage.dtype

    def read(self, first: int, last: int, out: torch.Tensor) -> None:
        start, columns = first * self.row_stride, self.shape[1]
        span = torch.empty((last - first - 1) * self.row_stride + columns, dtype=self.dtype)
        self.storage.read(start, start + span.numel(), span)
        out.copy_(span.as_strided((last - first, columns), (self.row_stride, 1)))


@dataclass(frozen=True)
class Rows:
    """Rows `first` to `last` − 1 of `base`: [last − first, …]."""

    base: LazyTensor
    first: int
    last: int

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.last - self.first, *self.base.shape[1:])

    @property
    def dtype(self) -> torch.dtype:
        return self.base.dtype

    def read(self, first: int, last: int, out: torch.Tensor) -> None:
        self.base.read(self.first + first, self.first + last, out)


@dataclass(frozen=True)
class Stacked:
    """`parts` [Rᵢ, …] one after the other along the first axis: [ΣRᵢ, …]."""

    parts: tuple[LazyTensor, ...]

    @cached_property
    def shape(self) -> tuple[int, ...]:
        return (sum(part.shape[0] for part in self.parts), *self.parts[0].shape[1:])

    @property
    def dtype(self) -> torch.dtype:
        return self.parts[0].dtype

    def read(self, first: int, last: int, out: torch.Tensor) -> None:
        start = 0
        for part in self.parts:
            low, high = max(first, start), min(last, start + part.shape[0])
            if low < high:
                part.read(low - start, high - start, out[low - first : high - first])
            start += part.shape[0]


@dataclass(frozen=True)
class Beside:
    """`parts` [R, Cᵢ] beside each other along the second axis: [R, ΣCᵢ]."""

    parts: tuple[LazyTensor, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.parts[0].shape[0], sum(part.shape[1] for part in self.parts))

    @property
    def dtype(self) -> torch.dtype:
        return self.parts[0].dtype

    def read(self, first: int, last: int, out: torch.Tensor) -> None:
        start = 0
        for part in self.parts:
            block = torch.empty(last - first, part.shape[1], dtype=self.dtype)
            part.read(first, last, block)
            out[:, start : start + part.shape[1]] = block
            start += part.shape[1]


@dataclass(frozen=True)
class Cast:
    """`base` in another dtype, rounded to nearest. A value too large for float16 is an error, which names `name`."""

    base: LazyTensor
    dtype: torch.dtype
    name: str

    @property
    def shape(self) -> tuple[int, ...]:
        return self.base.shape

    def read(self, first: int, last: int, out: torch.Tensor) -> None:
        original = torch.empty(out.shape, dtype=self.base.dtype)
        self.base.read(first, last, original)
        out.copy_(original)
        if self.dtype == torch.float16 and bool((out.isinf() & ~original.isinf()).any()):
            raise UserError(f"{self.name} holds values above 65504, which float16 cannot hold; use --dtype bfloat16.")


@dataclass(frozen=True)
class MeanRow:
    """`count` rows, each of them the mean of all rows of `base`.

    The mean is computed in fp32 when it is first asked for, and rounded to base's dtype once. Several threads may read.
    """

    base: LazyTensor
    count: int
    _cache: list[torch.Tensor] = field(default_factory=list, compare=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, compare=False)

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.count, *self.base.shape[1:])

    @property
    def dtype(self) -> torch.dtype:
        return self.base.dtype

    def read(self, first: int, last: int, out: torch.Tensor) -> None:
        with self._lock:
            if not self._cache:
                self._cache.append(self._mean())
        out.copy_(self._cache[0].expand_as(out))

    def _mean(self) -> torch.Tensor:
        """The mean of the rows of `base`, of the shape of one row, in its dtype."""
        total = torch.zeros(self.base.shape[1:], dtype=torch.float32)
        for _, _, piece in pieces(self.base):
            total += piece.float().sum(dim=0)
        return (total / self.base.shape[0]).to(self.dtype)


def records_of(tensor: LazyTensor) -> Iterator[Record]:
    """The bytes with sums that a tensor is read from; those of a format without sums have none."""
    if isinstance(tensor, FileTensor):
        if tensor.record is not None:
            yield tensor.record
        return
    inner = getattr(tensor, "parts", None) or (getattr(tensor, "base", None) or getattr(tensor, "storage", None),)
    for part in inner:
        if part is not None:
            yield from records_of(part)


def nbytes(tensor: LazyTensor) -> int:
    """The number of bytes of all its values."""
    return prod(tensor.shape) * tensor.dtype.itemsize


def pieces(tensor: LazyTensor, buffer: torch.Tensor | None = None) -> Iterator[tuple[int, int, torch.Tensor]]:
    """Read a tensor from its first row to its last: (first, last, rows `first` to `last` − 1), about PIECE_BYTES each.

    `buffer` (uint8) holds every piece in turn, so a piece is valid until the next one is asked for.
    """
    row = prod(tensor.shape[1:]) * tensor.dtype.itemsize
    step = max(1, PIECE_BYTES // row)
    if buffer is None or buffer.numel() < min(step, tensor.shape[0]) * row:
        buffer = torch.empty(min(step, tensor.shape[0]) * row, dtype=torch.uint8)
    for first in range(0, tensor.shape[0], step):
        last = min(first + step, tensor.shape[0])
        piece = buffer[: (last - first) * row].view(tensor.dtype).view(last - first, *tensor.shape[1:])
        tensor.read(first, last, piece)
        yield first, last, piece


def load(tensor: LazyTensor) -> torch.Tensor:
    """The whole tensor, in memory."""
    out = torch.empty(tensor.shape, dtype=tensor.dtype)
    tensor.read(0, tensor.shape[0], out)
    return out


def stack(parts: Sequence[LazyTensor]) -> LazyTensor:
    """`parts` one after the other along the first axis; a single part is returned as it is."""
    return parts[0] if len(parts) == 1 else Stacked(tuple(parts))


def beside(parts: Sequence[LazyTensor]) -> LazyTensor:
    """`parts` beside each other along the second axis; a single part is returned as it is."""
    return parts[0] if len(parts) == 1 else Beside(tuple(parts))
