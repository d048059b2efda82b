"""torch's slots for loading: a storage reader that checks what it reads, and a planner that unpickles nothing."""

from __future__ import annotations

import megatron_patch.core.device  # noqa: F401  prepares megatron-core for this machine

import concurrent.futures
from collections import deque
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
    """

    def __init__(self, folder: Path, metadata: Metadata, progress: Progress | None) -> None:
        super().__init__(folder)
        self._folder, self._metadata, self._progress = folder, metadata, progress
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
        reading: deque[tuple[ReadItem, concurrent.futures.Future[torch.Tensor]]] = deque()
        with ThreadPoolExecutor(_THREADS, thread_name_prefix="read") as pool:
            for request in sorted(plan.items, key=self._place):
                if request.type == LoadItemType.BYTE_IO:
                    planner.load_bytes(request, self._object(request))
                    continue
                if len(reading) > _THREADS:
                    self._put(planner, *reading.popleft())
                reading.append((request, pool.submit(self._read, self._item(request), request)))
            while reading:
                self._put(planner, *reading.popleft())
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def _place(self, request: ReadItem) -> tuple[str, int]:
        info = self.storage_data[request.storage_index]
        return info.relative_path, info.offset

    def _object(self, request: ReadItem) -> Any:
        info = self.storage_data[request.storage_index]
        path = inside(self._folder, info.relative_path)
        with open(path, "rb") as stream:
            stream.seek(info.offset)
            return read_stored_object(path, stream, info.length, request.storage_index.fqn)

    def _item(self, request: ReadItem) -> ItemTensor:
        """The description of the item; one, however many parts of it are asked for."""
        index = request.storage_index
        if index not in self._items:
            info = self.storage_data[index]
            path = inside(self._folder, info.relative_path)
            with open(path, "rb") as stream:
                self._items[index] = read_item(stream, path, index.fqn, info.offset, info.length, self._shapes[index])
        return self._items[index]

    def _read(self, item: ItemTensor, request: ReadItem) -> torch.Tensor:
        path = inside(self._folder, self.storage_data[request.storage_index].relative_path)
        part = tuple(slice(first, first + count) for first, count in zip(request.storage_offsets, request.lengths))
        with open(path, "rb") as stream:
            return read_part(stream, path, request.storage_index.fqn, item, part)

    def _put(self, planner: LoadPlanner, request: ReadItem, reading: concurrent.futures.Future[torch.Tensor]) -> None:
        """Copy what was read to where it is asked for."""
        target, found = planner.resolve_tensor(request).detach(), reading.result()
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
