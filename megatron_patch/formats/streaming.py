"""Files of tensors that are never in memory as a whole: which tensor goes where, and what stands around it."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch

from megatron_patch.formats.distcp import describe
from megatron_patch.formats.dtypes import of_torch
from megatron_patch.formats.lazy import LazyTensor, nbytes
from megatron_patch.formats.new_files import PART_BYTES, NewFile, write_new_files
from megatron_patch.formats.past_cache import BLOCK
from megatron_patch.formats.tensor_archive import add_archive


@dataclass(frozen=True)
class Item:
    """One tensor of a file, or in torch_dist one chunk of a tensor."""

    name: str
    tensor: LazyTensor
    shape: tuple[int, ...]  # what the file gives it, of as many elements
    offset: tuple[int, ...] = ()  # torch_dist: where this chunk begins in the whole tensor, for each axis


@dataclass(frozen=True)
class Written:
    """An item that was written, and its place."""

    item: Item
    file: str
    offset: int  # bytes
    length: int  # bytes


def partition(items: Sequence[Item], max_bytes: int) -> list[list[Item]]:
    """Cut `items`, in their order, into files of at most `max_bytes`: few of them, of about the same size.

    An item larger than `max_bytes` gets a file of its own.
    """
    total = sum(nbytes(item.tensor) for item in items)
    count = -(-total // max_bytes)
    target = max(1, min(max_bytes, -(-total // max(1, count))))
    files: list[list[Item]] = [[]]
    size = 0
    for item in items:
        more = nbytes(item.tensor)
        # An item is added as long as the file then ends nearer to the target than without it, and within the limit.
        if files[-1] and (size + more > max_bytes or size + more / 2 > target):
            files.append([])
            size = 0
        files[-1].append(item)
        size += more
    return files


def plan_distcp(file: NewFile, items: Sequence[Item]) -> list[Written]:
    """Add `items` to a `.distcp` file of torch_dist; returns their places."""
    written = []
    for item in items:
        start, length = add_archive(file, describe(item.shape, item.tensor.dtype), _pieces(item.tensor))
        written.append(Written(item, file.path.name, start, length))
    return written


def plan_safetensors(file: NewFile, items: Sequence[Item]) -> list[Written]:
    """Add `items` to a safetensors file; returns their places."""
    file.add_bytes(_safetensors_header(items))
    written = []
    for item in items:
        start = file.size
        for size, fill in _pieces(item.tensor):
            file.add(size, fill)
        written.append(Written(item, file.path.name, start, file.size - start))
    return written


def _pieces(tensor: LazyTensor) -> Iterator[tuple[int, Callable[[memoryview], None]]]:
    """A tensor's bytes, some rows a piece: how many, and what makes them."""
    row = prod(tensor.shape[1:]) * tensor.dtype.itemsize
    step = max(1, PART_BYTES // row)
    for first in range(0, tensor.shape[0], step):
        last = min(first + step, tensor.shape[0])

        def fill(out: memoryview, first: int = first, last: int = last) -> None:
            rows = torch.frombuffer(out, dtype=tensor.dtype).view(last - first, *tensor.shape[1:])
            tensor.read(first, last, rows)

        yield (last - first) * row, fill


def _safetensors_header(items: Sequence[Item]) -> bytes:
    """The start of a safetensors file: 8 bytes little-endian length, that many bytes of JSON.

    The items' bytes follow without gaps.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for item in items:
        end = offset + nbytes(item.tensor)
        dtype, shape = of_torch(item.tensor.dtype).safetensors, list(item.tensor.shape)
        header[item.name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    # The library itself fills up to a multiple of 8. With a whole block the data is read and written without a copy.
    text += b" " * (-(len(text) + 8) % BLOCK)
    return struct.pack("<Q", len(text)) + text


def write_files(
    folder: Path,
    files: Sequence[tuple[str, Sequence[Item]]],
    plan: Callable[[NewFile, Sequence[Item]], list[Written]],
    on_bytes: Callable[[int], None],
    at_once: int = 1,
    keeps_cache: bool = False,
) -> list[Written]:
    """Write `files` (name, items) into `folder`; returns the places of all items.

    Args:
        plan: `plan_distcp` or `plan_safetensors`.
        on_bytes: is told each number of bytes that was written, from several threads.
        at_once: as in `write_new_files`.
        keeps_cache: as in `NewFile`.

    Raises:
        UserError, OSError: the first error of any file. The other files stop at once.
    """
    written: list[Written] = []

    def planned() -> Iterator[NewFile]:
        for name, items in files:
            file = NewFile(folder / name, keeps_cache)
            written.extend(plan(file, items))
            yield file

    write_new_files(planned(), on_bytes, at_once)
    return written
