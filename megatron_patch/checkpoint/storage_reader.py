"""torch's slots for loading: a storage reader that checks what it reads, and a planner that unpickles nothing.

What lies on other nodes' disks comes from there (`elsewhere.py`).
"""

from __future__ import annotations

import megatron_patch.core.device as device

import concurrent.futures
import contextlib
import functools
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import torch
import torch.distributed.checkpoint as dcp
from megatron.core.dist_checkpointing.strategies.torch import MCoreLoadPlanner
from torch.distributed.checkpoint._nested_dict import set_element
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, LoadPlanner, ReadItem
from torch.futures import Future

from megatron_patch.checkpoint.elsewhere import Part, exchange
from megatron_patch.core import parallel
from megatron_patch.errors import UserError, naming, once_more
from megatron_patch.formats.checksums import Record
from megatron_patch.formats.distcp import ItemTensor, first_element, read_item, read_part
from megatron_patch.formats.distcp_metadata import MAX_OBJECT, inside
from megatron_patch.formats.lazy import read_bytes
from megatron_patch.formats.progress import Progress
from megatron_patch.formats.torch_files import load_object

_LEAST_THREADS, _MOST_THREADS = 4, 32  # that read side by side
_PIECE = 16 << 20  # bytes that a thread reads at a time


class Planner(MCoreLoadPlanner):
    """core's planner, but that objects come as values instead of as bytes that it would unpickle."""

    def load_bytes(self, read_item: ReadItem, value: Any) -> None:
        """Put an object where it is asked for."""
        fqn = read_item.dest_index.fqn
        if self.flatten_state_dict:
            set_element(self.original_state_dict, self.mappings[fqn], value)
        else:
            self.state_dict[fqn] = value


class Reader(dcp.FileSystemReader):
    """torch's reader of files, with metadata that has been read already.

    Each item is checked, and its tensor's bytes are read from where the item says and compared with their CRC-32.

    Args:
        elsewhere: files of the checkpoint that this node does not keep.
    """

    def __init__(
        self, folder: Path, metadata: Metadata, progress: Progress | None, elsewhere: frozenset[str] = frozenset()
    ) -> None:  # fmt: skip
        super().__init__(folder)
        self._folder, self._metadata, self._progress, self._elsewhere = folder, metadata, progress, elsewhere
        self._shapes = {
            MetadataIndex(key, chunk.offsets): tuple(chunk.sizes)
            for key, entry in metadata.state_dict_metadata.items()
            if isinstance(entry, TensorStorageMetadata)
            for chunk in entry.chunks
        }
        self._items: dict[MetadataIndex, ItemTensor] = {}

    @property
    def records(self) -> list[Record]:
        """What was read of, as far as it has sums."""
        return [item.record for item in self._items.values() if item.record is not None]

    def read_metadata(self) -> Metadata:
        """What was read before."""
        return self._metadata

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Read all of `plan`: several threads read, sum, and put the bytes where they are asked for."""
        device.synchronize()  # what has filled the memory before, on the main thread's stream
        here: list[ReadItem] = []
        there: list[ReadItem] = []
        for request in sorted(plan.items, key=self._place):
            (there if self._place(request)[0] in self._elsewhere else here).append(request)
        if any(parallel.from_all_ranks(bool(self._elsewhere))):
            self._exchange(planner, there)
        pool = ThreadPoolExecutor(_threads(), thread_name_prefix="read")
        try:
            reading = [self._begin(pool, planner, request) for request in here]
            for one in concurrent.futures.as_completed(filter(None, reading)):
                one.result()
        finally:
            pool.shutdown(cancel_futures=True)
        device.synchronize()
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def _begin(self, pool: ThreadPoolExecutor, planner: LoadPlanner, request: ReadItem) -> concurrent.futures.Future | None:
        """Read an object, or let a thread read a tensor."""
        assert isinstance(planner, Planner)
        if request.type == LoadItemType.BYTE_IO:
            planner.load_bytes(request, once_more(lambda: self._object(request)))
            return None
        item = self._item(request.storage_index)
        if request.dest_index.fqn in planner.allow_shape_mismatch_sharded_tensors:
            # core's planner has another tensor filled than the one that is asked for, one after the other.
            target = planner.resolve_tensor(request).detach()
            once_more(lambda: self._read(item, request, target))
            planner.commit_tensor(request, target)
            return None
        target = planner.resolve_tensor(request).detach()
        return pool.submit(once_more, functools.partial(self._read, item, request, target))

    def _exchange(self, planner: LoadPlanner, there: list[ReadItem]) -> None:
        """Put what other nodes have where it is asked for, and send them what they lack."""
        requests: dict[Part, list[ReadItem]] = {}
        for request in there:
            requests.setdefault(self._part(request), []).append(request)

        def take(part: Part, data: torch.Tensor) -> None:
            for request in requests[part]:
                fqn = request.storage_index.fqn
                if request.type == LoadItemType.BYTE_IO:
                    path = self._folder / part[0]
                    planner.load_bytes(request, load_object(path, data.numpy().tobytes(), f"object {fqn}"))
                    continue
                entry = self._metadata.state_dict_metadata[fqn]
                assert isinstance(entry, TensorStorageMetadata), "the plan was made of it"
                target = planner.resolve_tensor(request).detach()
                target.copy_(data.view(entry.properties.dtype).reshape(tuple(request.lengths)))
                planner.commit_tensor(request, target)
                self._count(data.numel())

        files = frozenset(info.relative_path for info in self.storage_data.values()) - self._elsewhere
        exchange(files, list(requests), lambda part: once_more(lambda: self._bytes(part)), take)

    def _part(self, request: ReadItem) -> Part:
        """What names the part of a file that `request` is for, to every rank."""
        index, (name, offset) = request.storage_index, self._place(request)
        lengths = () if request.type == LoadItemType.BYTE_IO else tuple(request.lengths)
        return name, offset, index.fqn, tuple(index.offset or ()), tuple(request.storage_offsets), lengths, request.type.value

    def _bytes(self, part: Part) -> torch.Tensor:
        """A part of a file of this node, uint8 [bytes]."""
        name, _, fqn, offset, firsts, lengths, kind = part
        path = inside(self._folder, name)
        with naming(path), open(path, "rb") as stream:
            if kind == LoadItemType.BYTE_IO.value:
                info = self.storage_data[MetadataIndex(fqn)]
                stream.seek(info.offset)
                return torch.frombuffer(bytearray(stream.read(min(info.length, MAX_OBJECT + 1))), dtype=torch.uint8)
            item = self._item(MetadataIndex(fqn, torch.Size(offset)))
            asked = tuple(slice(first, first + count) for first, count in zip(firsts, lengths))
            return read_part(stream, path, fqn, item, asked).contiguous().reshape(-1).view(torch.uint8)

    def _place(self, request: ReadItem) -> tuple[str, int]:
        info = self.storage_data[request.storage_index]
        return info.relative_path, info.offset

    def _object(self, request: ReadItem) -> Any:
        info = self.storage_data[request.storage_index]
        path = inside(self._folder, info.relative_path)
        with naming(path), open(path, "rb") as stream:
            stream.seek(info.offset)
            return read_stored_object(path, stream, info.length, request.storage_index.fqn)

    def _item(self, index: MetadataIndex) -> ItemTensor:
        """The description of the item; one, however many parts of it are asked for."""
        if index not in self._items:
            info = self.storage_data[index]
            self._items[index] = once_more(lambda: self._described(index, info))
        return self._items[index]

    def _described(self, index: MetadataIndex, info: Any) -> ItemTensor:
        path = inside(self._folder, info.relative_path)
        with naming(path), open(path, "rb") as stream:
            return read_item(stream, path, index.fqn, info.offset, info.length, self._shapes[index])

    def _read(self, item: ItemTensor, request: ReadItem, target: torch.Tensor) -> None:
        """Fill `target` with what is asked for of an item."""
        path = inside(self._folder, self.storage_data[request.storage_index].relative_path)
        name = request.storage_index.fqn
        part = tuple(slice(first, first + count) for first, count in zip(request.storage_offsets, request.lengths))
        first = first_element(item, part)
        with open(path, "rb") as stream:
            if first is None or not target.is_contiguous() or target.dtype != item.dtype:
                found = read_part(stream, path, name, item, part)
                assert found.shape == target.shape, (name, found.shape, target.shape)
                target.copy_(found)
                self._count(found.nbytes)
                return
            position = item.offset + first * item.dtype.itemsize
            for piece in target.view(-1).view(torch.uint8).split(_PIECE):
                self._put(stream.fileno(), piece, position, path, name, item)
                position += piece.numel()
                self._count(piece.numel())

    def _put(self, descriptor: int, piece: torch.Tensor, position: int, path: Path, name: str, item: ItemTensor) -> None:
        """Read bytes straight into host memory, or through the thread's pinned memory onto the GPU."""
        if not piece.is_cuda:
            read_bytes(descriptor, piece, position, path, name, item.record)
            return
        buffers = _Buffers.of_thread(piece.device)
        with buffers.next(piece.numel()) as host:
            read_bytes(descriptor, host, position, path, name, item.record)
            piece.copy_(host, non_blocking=True)

    def _count(self, count: int) -> None:
        if self._progress is not None:
            self._progress.add(count)


@functools.cache
def _copying_stream(where: torch.device) -> torch.cuda.Stream:
    """The stream on which all threads copy to a GPU.

    One copy takes the whole link. And torch has few streams: one a thread would soon be the stream of something else.
    """
    return torch.cuda.Stream(where)


class _Buffers:
    """Two pieces of pinned memory of a thread: one is copied to the GPU while the other is read into."""

    _kept = threading.local()

    def __init__(self, where: torch.device) -> None:
        self._stream = _copying_stream(where)
        self._pieces = [(torch.empty(_PIECE, dtype=torch.uint8, pin_memory=True), torch.cuda.Event()) for _ in range(2)]

    @classmethod
    def of_thread(cls, where: torch.device) -> _Buffers:
        """This thread's."""
        if not hasattr(cls._kept, "buffers"):
            cls._kept.buffers = cls(where)
        return cls._kept.buffers

    @contextlib.contextmanager
    def next(self, size: int) -> Iterator[torch.Tensor]:
        """`size` bytes to fill and to copy from inside, on the thread's stream."""
        host, copied = self._pieces[0]
        self._pieces.reverse()
        copied.synchronize()
        with torch.cuda.stream(self._stream):
            yield host[:size]
            copied.record()


def _threads() -> int:
    """Threads that read side by side: a sum takes longer than a copy, so there is one for each core that a rank has."""
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(_LEAST_THREADS, min(_MOST_THREADS, (os.cpu_count() or 1) // here))


def read_stored_object(path: Path, stream: BinaryIO, length: int, key: str) -> Any:
    """The object of `length` bytes at the stream's position, of a few plain kinds.

    Raises:
        UserError: it is too long, damaged, or of another kind.
    """
    if length > MAX_OBJECT:
        raise UserError(f"{path}: object {key} has {length} bytes; more than {MAX_OBJECT} are not read.")
    return load_object(path, stream.read(length), f"object {key}")
