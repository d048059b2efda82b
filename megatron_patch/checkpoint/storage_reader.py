"""torch's slots for loading: a storage reader that checks what it reads, and a planner that unpickles nothing.

What lies on other nodes' disks comes from there (`elsewhere.py`).
"""

from __future__ import annotations

import megatron_patch.core.device  # noqa: F401  prepares megatron-core for this machine

import concurrent.futures
from collections import deque
from collections.abc import Sequence
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
from megatron_patch.errors import UserError
from megatron_patch.formats.checksums import Record
from megatron_patch.formats.distcp import ItemTensor, read_item, read_part
from megatron_patch.formats.distcp_metadata import MAX_OBJECT, inside
from megatron_patch.formats.progress import Progress
from megatron_patch.formats.torch_files import load_object

_THREADS = 4  # that read side by side


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
        """Read all of `plan`: several threads read and sum, and this one, whose stream the device knows, copies."""
        here: list[ReadItem] = []
        there: list[ReadItem] = []
        for request in sorted(plan.items, key=self._place):
            (there if self.storage_data[request.storage_index].relative_path in self._elsewhere else here).append(request)
        if any(parallel.from_all_ranks(bool(self._elsewhere))):
            self._exchange(planner, there)
        reading: deque[tuple[ReadItem, concurrent.futures.Future[torch.Tensor]]] = deque()
        with ThreadPoolExecutor(_THREADS, thread_name_prefix="read") as pool:
            for request in here:
                if request.type == LoadItemType.BYTE_IO:
                    planner.load_bytes(request, self._object(request))
                    continue
                if len(reading) > _THREADS:
                    self._put_read(planner, *reading.popleft())
                reading.append((request, pool.submit(self._read, self._item(request.storage_index), *self._where(request))))
            while reading:
                self._put_read(planner, *reading.popleft())
        done: Future[None] = Future()
        done.set_result(None)
        return done

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
                self._put(planner, request, data.view(entry.properties.dtype).reshape(tuple(request.lengths)))

        files = frozenset(info.relative_path for info in self.storage_data.values()) - self._elsewhere
        exchange(files, list(requests), self._bytes, take)

    def _part(self, request: ReadItem) -> Part:
        """What names the part of a file that `request` is for, to every rank."""
        index, (name, offset) = request.storage_index, self._place(request)
        lengths = () if request.type == LoadItemType.BYTE_IO else tuple(request.lengths)
        return name, offset, index.fqn, tuple(index.offset or ()), tuple(request.storage_offsets), lengths, request.type.value

    def _bytes(self, part: Part) -> torch.Tensor:
        """A part of a file of this node, uint8 [bytes]."""
        _, _, fqn, offset, first, lengths, kind = part
        if kind == LoadItemType.BYTE_IO.value:
            info = self.storage_data[MetadataIndex(fqn)]
            with open(inside(self._folder, info.relative_path), "rb") as stream:
                stream.seek(info.offset)
                return torch.frombuffer(bytearray(stream.read(min(info.length, MAX_OBJECT + 1))), dtype=torch.uint8)
        index = MetadataIndex(fqn, torch.Size(offset))
        return self._read(self._item(index), index, first, lengths).contiguous().reshape(-1).view(torch.uint8)

    def _place(self, request: ReadItem) -> tuple[str, int]:
        info = self.storage_data[request.storage_index]
        return info.relative_path, info.offset

    def _object(self, request: ReadItem) -> Any:
        info = self.storage_data[request.storage_index]
        path = inside(self._folder, info.relative_path)
        with open(path, "rb") as stream:
            stream.seek(info.offset)
            return read_stored_object(path, stream, info.length, request.storage_index.fqn)

    def _item(self, index: MetadataIndex) -> ItemTensor:
        """The description of the item; one, however many parts of it are asked for."""
        if index not in self._items:
            info = self.storage_data[index]
            path = inside(self._folder, info.relative_path)
            with open(path, "rb") as stream:
                self._items[index] = read_item(stream, path, index.fqn, info.offset, info.length, self._shapes[index])
        return self._items[index]

    def _read(self, item: ItemTensor, index: MetadataIndex, firsts: Sequence[int], lengths: Sequence[int]) -> torch.Tensor:
        path = inside(self._folder, self.storage_data[index].relative_path)
        part = tuple(slice(first, first + count) for first, count in zip(firsts, lengths))
        with open(path, "rb") as stream:
            return read_part(stream, path, index.fqn, item, part)

    @staticmethod
    def _where(request: ReadItem) -> tuple[MetadataIndex, Sequence[int], Sequence[int]]:
        return request.storage_index, request.storage_offsets, request.lengths

    def _put_read(self, planner: LoadPlanner, request: ReadItem, reading: concurrent.futures.Future[torch.Tensor]) -> None:
        self._put(planner, request, reading.result())

    def _put(self, planner: LoadPlanner, request: ReadItem, found: torch.Tensor) -> None:
        """Copy what was read to where it is asked for."""
        target = planner.resolve_tensor(request).detach()
        assert found.shape == target.shape, (request.storage_index.fqn, found.shape, target.shape)
        target.copy_(found)
        if self._progress is not None:
            self._progress.add(found.nbytes)
        planner.commit_tensor(request, target)


def read_stored_object(path: Path, stream: BinaryIO, length: int, key: str) -> Any:
    """The object of `length` bytes at the stream's position, of a few plain kinds.

    Raises:
        UserError: it is too long, damaged, or of another kind.
    """
    if length > MAX_OBJECT:
        raise UserError(f"{path}: object {key} has {length} bytes; more than {MAX_OBJECT} are not read.")
    return load_object(path, stream.read(length), f"object {key}")
