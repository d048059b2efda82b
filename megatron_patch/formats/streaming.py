"""Writing files of tensors that are never in memory as a whole.

Two files are written at a time. They are flushed to the disk, progress is counted, and the first error stops all.
"""

from __future__ import annotations

import json
import os
import struct
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from megatron_patch.errors import named
from megatron_patch.formats.distcp import write_item
from megatron_patch.formats.dtypes import of_torch
from megatron_patch.formats.lazy import PIECE_BYTES, LazyTensor, nbytes, pieces

WORKERS = 2  # files at a time
_WRITE_BACK = 64 << 20  # bytes after which dirty pages are handed to the disk
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


class Cancelled(RuntimeError):
    """This file was stopped because another one failed. The other one's error is the one to report."""


class Sink:
    """A new file that is written once, from its start to its end, and flushed to the disk when it is closed.

    Dirty pages are handed to the disk every `_WRITE_BACK` bytes. So the flush at the end is short, and a checkpoint
    does not push everything else out of the page cache.

    Args:
        on_bytes: is told each number of bytes that was written.
        cancelled: stops the writing when it is set.
    """

    def __init__(self, path: Path, on_bytes: Callable[[int], None], cancelled: threading.Event) -> None:
        self.path, self._on_bytes, self._cancelled = path, on_bytes, cancelled
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
        if self.position - self._handed_over >= _WRITE_BACK:
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
) -> list[Written]:
    """Write `files` (name, items) into `folder`, `WORKERS` at a time; returns the places of all items.

    Args:
        write: `write_distcp` or `write_safetensors`.
        on_bytes: is told each number of bytes that was written, from several threads.

    Raises:
        UserError, OSError: the first error of any file. The other files stop at once.
    """
    cancelled = threading.Event()

    def write_one(name: str, items: Sequence[Item]) -> list[Written]:
        try:
            with Sink(folder / name, on_bytes, cancelled) as sink:
                return write(sink, items)
        except BaseException:
            cancelled.set()
            raise

    with ThreadPoolExecutor(WORKERS, thread_name_prefix="write") as pool:
        futures = [pool.submit(write_one, name, items) for name, items in files]
        try:
            errors = [future.exception() for future in futures]
        except BaseException:  # an interrupt while waiting: stop the writers before leaving
            cancelled.set()
            raise
    for error in sorted(filter(None, errors), key=lambda error: isinstance(error, Cancelled)):
        raise error
    return [written for future in futures for written in future.result()]
