"""Loading a torch_dist checkpoint through megatron-core, without letting core or torch read a file.

Their readers unpickle `.metadata`, common.pt and the objects beside the tensors without restriction, so a file could
run code. Here `formats.distcp_metadata` reads and checks these files. core and torch get the results through slots of
theirs: core's for strategies, torch's for a storage reader and a planner.
"""

from __future__ import annotations

import megatron_patch.core.device  # noqa: F401  prepares megatron-core for this machine

import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch.distributed.checkpoint as dcp
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.core import CheckpointingException
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedObject, ShardedTensor, ShardedTensorFactory
from megatron.core.dist_checkpointing.strategies.common import TorchCommonLoadStrategy
from megatron.core.dist_checkpointing.strategies.torch import (
    MCoreLoadPlanner,
    TorchDistLoadShardedStrategy,
    _replace_sharded_keys_with_state_dict_keys,
    _replace_state_dict_keys_with_sharded_keys,
    _restore_dict_types,
    _unwrap_pyt_sharded_tensor,
    mcore_to_pyt_state_dict,
)
from megatron.core.dist_checkpointing.validation import StrictHandling
from torch.distributed.checkpoint._nested_dict import set_element
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata, MetadataIndex, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, LoadPlanner, ReadItem
from torch.futures import Future

from megatron_patch.errors import UserError
from megatron_patch.formats.distcp import read_item, read_part
from megatron_patch.formats.distcp_metadata import (
    MAX_OBJECT,
    inside,
    read_backends,
    read_common,
    read_dcp_metadata,
)
from megatron_patch.formats.torch_files import load_object

_OBJECT_KEY = re.compile(r"[^/]+/shard_[0-9]{1,9}(\.[0-9]{1,9})*_[0-9]{1,9}(\.[0-9]{1,9})*")


def load_checked(folder: Path, state: dict[str, Any]) -> dict[str, Any]:
    """`dist_checkpointing.load` of `state` from `folder`. Each file is read once and checked; every rank calls it.

    Args:
        folder: one iteration's.
        state: core's sharded state dict, whose tensors are filled in place.

    Returns:
        `state`'s structure with the loaded tensors and objects, and everything that common.pt holds. That may have any
        form: look it through before you use it.

    Raises:
        UserError: a file is missing, damaged or refused, or lacks what `state` asks for. Nothing of it has run.
    """
    read_backends(folder)
    metadata, common = read_dcp_metadata(folder), read_common(folder)
    _check_asked(folder, metadata, state)
    _check_common(folder, common, state)
    try:
        return dist_checkpointing.load(
            state, str(folder), _Tensors(folder, metadata), _Common(common), strict=StrictHandling.RAISE_UNEXPECTED
        )
    except CheckpointingException as error:
        raise UserError(f"{folder} cannot be loaded: {' '.join(str(error).split())[:400]}") from None
    except CheckpointException as error:  # torch's for an error of any rank; it is a BaseException
        causes = [failure for failure, _ in error.failures.values()]
        for cause in causes:
            if isinstance(cause, UserError):
                raise UserError(str(cause)) from None
        raise RuntimeError(f"{folder}: {causes[0]!r}") from error


def _check_asked(folder: Path, metadata: Metadata, state: dict[str, Any]) -> None:
    """Raise where `state` asks for a tensor and the checkpoint has an object there, or another shape.

    Rows of vocabulary may differ in number, since other programs' files may hold padding.
    """
    for entry in nested_values(state):
        if isinstance(entry, ShardedTensorFactory):
            _check_asked(folder, metadata, {"built": entry.build()})
        if not isinstance(entry, (ShardedTensor, ShardedObject)):
            continue
        is_tensor = isinstance(entry, ShardedTensor)
        key = entry.key if is_tensor else entry.unique_key
        found = metadata.state_dict_metadata.get(key)
        if found is None:
            continue  # core lists what is missing, all of it
        if is_tensor != isinstance(found, TensorStorageMetadata):
            raise UserError(f"{folder}: {key} is a {type(found).__name__} there; it is no checkpoint of this model.")
        if not isinstance(found, TensorStorageMetadata):
            continue
        skipped = 1 if entry.allow_shape_mismatch else 0
        wanted = tuple(entry.global_shape)
        if len(found.size) != len(wanted) or tuple(found.size)[skipped:] != wanted[skipped:]:
            raise UserError(f"{folder}: {entry.key} has shape {list(found.size)} there, and {list(wanted)} in this run.")


def _check_common(folder: Path, common: object, state: object, name: str = "") -> None:
    """Raise where common.pt has a value at a place where `state` asks for a tensor or an object.

    core merges the two afterwards, and takes it for granted that they share no place.
    """
    if isinstance(common, dict) and isinstance(state, dict):
        for key in common.keys() & state.keys():
            _check_common(folder, common[key], state[key], f"{name}.{key}" if name else str(key))
    elif any(True for _ in _sharded(state)):
        raise UserError(f"{folder}: common.pt has a {type(common).__name__} as {name}, where tensors belong; copy it again.")


def _sharded(state: object) -> Iterator[object]:
    values = nested_values(state) if isinstance(state, (dict, list)) else [state]
    return (value for value in values if isinstance(value, (ShardedTensor, ShardedObject, ShardedTensorFactory)))


class _Common(TorchCommonLoadStrategy):
    """core's strategy for common.pt, which returns what has been read of it already."""

    def __init__(self, content: dict[str, Any]) -> None:
        self._content = content

    def load_common(self, checkpoint_dir: str | Path) -> dict[str, Any]:
        return self._content

    def load_sharded_objects(self, sharded_objects_state_dict: Any, checkpoint_dir: str | Path) -> Any:
        raise AssertionError("torch_dist keeps its objects beside the tensors")


class _Tensors(TorchDistLoadShardedStrategy):
    """core's strategy for torch_dist, with the reader and planner below and metadata that has been read already."""

    def __init__(self, folder: Path, metadata: Metadata) -> None:
        super().__init__()
        self._folder, self._metadata = folder, metadata

    def load(self, sharded_state_dict: dict[str, Any], checkpoint_dir: str | Path) -> dict[str, Any]:
        """core's `load` with our reader and planner. core has no slot for these, so its steps are repeated here."""
        entries, structure, renamed = _replace_state_dict_keys_with_sharded_keys(sharded_state_dict)
        tensors = [entry for entry in nested_values(sharded_state_dict) if isinstance(entry, ShardedTensor)]
        planner = _Planner(
            shapes_validation_sharded_tensors=[entry for entry in tensors if not entry.allow_shape_mismatch],
            allow_shape_mismatch_sharded_tensors={entry.key: entry for entry in tensors if entry.allow_shape_mismatch},
        )
        state = mcore_to_pyt_state_dict(entries, is_loading=True)
        dcp.load(state, storage_reader=_Reader(self._folder, self._metadata), planner=planner)
        unwrapped = {key: _unwrap_pyt_sharded_tensor(value) for key, value in state.items()}
        for key, values in unwrapped.items():
            if type(values) is not list or len(values) != len(renamed[key]):
                raise UserError(f"{self._folder}: object {key} is no list of {len(renamed[key])}; copy the checkpoint again.")
        loaded = _replace_sharded_keys_with_state_dict_keys(unwrapped, structure, renamed)
        _restore_dict_types(loaded, sharded_state_dict)
        return loaded

    def load_tensors_metadata(self, checkpoint_dir: str | Path, metadata: Metadata | None = None) -> dict[str, Any]:
        return super().load_tensors_metadata(Path(checkpoint_dir), self._metadata)

    def load_sharded_metadata(self, checkpoint_dir: str | Path) -> dict[str, Any]:
        """Tensors and objects by key.

        Objects whose keys have another form than core's are left out: no model asks for them.
        """
        objects = {
            key: ShardedObject.empty_from_unique_key(key)
            for key, entry in self._metadata.state_dict_metadata.items()
            if isinstance(entry, BytesStorageMetadata) and _OBJECT_KEY.fullmatch(key)
        }
        return objects | self.load_tensors_metadata(checkpoint_dir)

    def remove_sharded_tensors(self, checkpoint_dir: str, key_prefix: str) -> None:
        raise AssertionError("this strategy only loads")


class _Planner(MCoreLoadPlanner):
    """core's planner, but that objects come as values instead of as bytes that it would unpickle."""

    def load_bytes(self, read_item: ReadItem, value: Any) -> None:
        fqn = read_item.dest_index.fqn
        if self.flatten_state_dict:
            set_element(self.original_state_dict, self.mappings[fqn], value)
        else:
            self.state_dict[fqn] = value


class _Reader(dcp.FileSystemReader):
    """torch's reader of files, with metadata that has been read already.

    Each item is checked, and its tensor's bytes are read from where the item says.
    """

    def __init__(self, folder: Path, metadata: Metadata) -> None:
        super().__init__(folder)
        self._folder, self._metadata = folder, metadata
        self._shapes = {
            MetadataIndex(key, chunk.offsets): tuple(chunk.sizes)
            for key, entry in metadata.state_dict_metadata.items()
            if isinstance(entry, TensorStorageMetadata)
            for chunk in entry.chunks
        }

    def read_metadata(self) -> Metadata:
        return self._metadata

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        by_file: dict[str, list[ReadItem]] = defaultdict(list)
        for request in plan.items:
            by_file[self.storage_data[request.storage_index].relative_path].append(request)
        for name, requests in by_file.items():
            path = inside(self._folder, name)
            with open(path, "rb") as stream:
                for request in requests:
                    self._read(stream, path, request, planner)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def _read(self, stream: BinaryIO, path: Path, request: ReadItem, planner: LoadPlanner) -> None:
        info, key = self.storage_data[request.storage_index], request.storage_index.fqn
        if request.type == LoadItemType.BYTE_IO:
            stream.seek(info.offset)
            planner.load_bytes(request, _object(path, stream, info.length, key))
            return
        item = read_item(stream, path, key, info.offset, info.length, self._shapes[request.storage_index])
        part = tuple(slice(first, first + count) for first, count in zip(request.storage_offsets, request.lengths))
        target = planner.resolve_tensor(request).detach()
        found = read_part(stream, path, key, item, part)
        assert found.shape == target.shape, (key, found.shape, target.shape)
        target.copy_(found)
        planner.commit_tensor(request, target)


def _object(path: Path, stream: BinaryIO, length: int, key: str) -> Any:
    if length > MAX_OBJECT:
        raise UserError(f"{path}: object {key} has {length} bytes; more than {MAX_OBJECT} are not read.")
    return load_object(path, stream.read(length), f"object {key}")
