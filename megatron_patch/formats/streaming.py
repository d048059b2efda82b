"""Tensors that are never in memory as a whole, as the bytes of files: torch_dist's and safetensors'."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from megatron_patch.formats.distcp import write_item
from megatron_patch.formats.dtypes import of_torch
from megatron_patch.formats.lazy import PIECE_BYTES, LazyTensor, nbytes, pieces
from megatron_patch.formats.parallel_files import WORKERS, Sink, write_side_by_side

_SMALL = 128 << 20  # bytes; tensors of up to so many in all are one file


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

    Their number is a multiple of `WORKERS`, so that no worker waits at the end; small models get one file. An item
    larger than `max_bytes` gets a file of its own.
    """
    total = sum(nbytes(item.tensor) for item in items)
    count = -(-total // max_bytes)
    if total > _SMALL:
        count = -(-count // WORKERS) * WORKERS
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


def write_distcp(sink: Sink, items: Sequence[Item]) -> list[Written]:
    """Write `items` as a `.distcp` file of torch_dist; returns their places."""
    buffer = torch.empty(PIECE_BYTES, dtype=torch.uint8)
    written = []
    for item in items:
        start = sink.position
        length = write_item(sink, item.tensor, item.shape, buffer)
        written.append(Written(item, sink.path.name, start, length))
    return written


def write_safetensors(sink: Sink, items: Sequence[Item]) -> list[Written]:
    """Write `items` as a safetensors file; returns their places."""
    buffer = torch.empty(PIECE_BYTES, dtype=torch.uint8)
    sink.write(_safetensors_header(items))
    written = []
    for item in items:
        start = sink.position
        for _, _, piece in pieces(item.tensor, buffer):
            sink.write(piece.view(-1).view(torch.uint8).numpy().data)
        written.append(Written(item, sink.path.name, start, sink.position - start))
    return written


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
    text += b" " * (-len(text) % 8)  # the data then begins at a multiple of 8, as the library writes it
    return struct.pack("<Q", len(text)) + text


def write_files(
    folder: Path,
    files: Sequence[tuple[str, Sequence[Item]]],
    write: Callable[[Sink, Sequence[Item]], list[Written]],
    on_bytes: Callable[[int], None],
    workers: int = WORKERS,
    keeps_cache: bool = False,
) -> list[Written]:
    """Write `files` (name, items) into `folder`; returns the places of all items, file after file.

    Args:
        write: `write_distcp` or `write_safetensors`.
        on_bytes, workers, keeps_cache: as in `write_side_by_side`.

    Raises:
        UserError, OSError: the first error of any file. The other files stop at once.
    """
    found: dict[str, list[Written]] = {}

    def job(name: str, items: Sequence[Item]) -> Callable[[Sink], None]:
        return lambda sink: found.__setitem__(name, write(sink, items))

    write_side_by_side(folder, [(name, job(name, items)) for name, items in files], on_bytes, workers, keeps_cache)
    return [written for name, _ in files for written in found[name]]
