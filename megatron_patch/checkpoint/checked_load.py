"""Loading a torch_dist checkpoint through megatron-core, without letting core or torch read a file.

Their readers unpickle `.metadata`, common.pt and the objects beside the tensors without restriction, so a file could
run code. Here `formats.distcp_metadata` reads and checks these files. core has no slot for common.pt from 0.17 on, so
its steps around the reading are taken here one by one. torch gets the results through its slots for a storage reader
and a planner.
"""

from __future__ import annotations

import megatron_patch.core.device  # noqa: F401  prepares megatron-core for this machine

import re
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from megatron.core.dist_checkpointing.core import CheckpointingException
from megatron.core.dist_checkpointing.dict_utils import merge, nested_values
from megatron.core.dist_checkpointing.mapping import ShardedObject, ShardedTensor, ShardedTensorFactory, apply_factory_merges
from megatron.core.dist_checkpointing.state_dict_utils import load_preprocess
from megatron.core.dist_checkpointing.strategies.torch import (
    _replace_sharded_keys_with_state_dict_keys,
    _replace_state_dict_keys_with_sharded_keys,
    _restore_dict_types,
    _unwrap_pyt_sharded_tensor,
    mcore_to_pyt_state_dict,
)
from megatron.core.dist_checkpointing.utils import extract_sharded_base
from megatron.core.dist_checkpointing.validation import (
    StrictHandling,
    determine_global_metadata,
    validate_integrity_and_strict_load,
)
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, TensorStorageMetadata

from megatron_patch.checkpoint.storage_reader import Planner, Reader, read_stored_object
from megatron_patch.core import parallel
from megatron_patch.errors import OnEveryRank, UserError, naming, once_more, problem_of, raise_on_every_rank
from megatron_patch.formats.checksums import finish_together
from megatron_patch.formats.distcp_metadata import (
    inside,
    kept_elsewhere,
    read_backends,
    read_common,
    read_dcp_metadata,
)
from megatron_patch.formats.progress import Progress

_OBJECT_KEY = re.compile(r"[^/]+/shard_[0-9]{1,9}(\.[0-9]{1,9})*_[0-9]{1,9}(\.[0-9]{1,9})*")


_COMMON_KEY = "common_state/shard_0_1"


def load_checked(folder: Path, state: dict[str, Any]) -> dict[str, Any]:
    """What `dist_checkpointing.load` gives for `state` and `folder`, every rank calling it.

    Each file is read once and checked.

    Args:
        folder: one iteration's.
        state: core's sharded state dict, whose tensors are filled in place.

    Returns:
        `state`'s structure with the loaded tensors and objects, and everything that common.pt holds. That may have any
        form: look it through before you use it.

    Raises:
        OnEveryRank: a file is missing, damaged or refused, or lacks what `state` asks for. Nothing of it has run.
        RefusedOnEveryRank: one cannot be read for a reason that lies outside of it.
        RuntimeError: an error of another rank that is no UserError, and so a bug.
    """
    described = parallel.all_or_none(lambda: once_more(lambda: _described(folder, state)))
    try:
        return _load(folder, *described, state)
    except CheckpointingException as error:
        raise OnEveryRank(f"{folder} cannot be loaded: {' '.join(str(error).split())[:400]}") from None
    except CheckpointException as error:  # torch's for an error of any rank; it is a BaseException
        causes = [failure for failure, _ in error.failures.values()]
        raise_on_every_rank([problem_of(cause) for cause in causes if isinstance(cause, (UserError, OSError))])
        raise RuntimeError(f"{folder}: {causes[0]!r}") from error


def _described(folder: Path, state: dict[str, Any]) -> tuple[frozenset[str], Metadata, dict[str, Any]]:
    """The files that other nodes keep, the metadata and what is no sharded tensor, looked through for `state`."""
    read_backends(folder)
    elsewhere = kept_elsewhere(folder)
    metadata = read_dcp_metadata(folder, elsewhere)
    common = _common_object(folder, metadata) or read_common(folder)
    _check_asked(folder, metadata, state)
    _check_common(folder, common, state)
    return elsewhere, metadata, common


def _common_object(folder: Path, metadata: Metadata) -> dict[str, Any] | None:
    """What core before 0.19 writes as common.pt, if it stands among the objects, where core 0.19 puts it; else None."""
    info = metadata.storage_data.get(MetadataIndex(_COMMON_KEY))
    if info is None:
        return None
    path = inside(folder, info.relative_path)
    with naming(path), open(path, "rb") as stream:
        stream.seek(info.offset)
        found = read_stored_object(path, stream, info.length, _COMMON_KEY)
    if type(found) is not list or len(found) != 1 or type(found[0]) is not dict:
        raise UserError(f"{path}: object {_COMMON_KEY} is no list of one dictionary; copy the checkpoint again.")
    return found[0]


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
    """core's descriptions of tensors and objects in a state dict."""
    values = nested_values(state) if isinstance(state, (dict, list)) else [state]
    return (value for value in values if isinstance(value, (ShardedTensor, ShardedObject, ShardedTensorFactory)))


def _load(
    folder: Path, elsewhere: frozenset[str], metadata: Metadata, common: dict[str, Any], state: dict[str, Any]
) -> dict[str, Any]:
    """core's `dist_checkpointing.load`, step for step, with what was read of the files; `common` is filled and
    returned.
    """
    asked, own, factories = load_preprocess(state)
    merge(common, own)
    asked, _ = extract_sharded_base(asked)
    asked, _, _ = validate_integrity_and_strict_load(
        asked, StrictHandling.RAISE_UNEXPECTED, True, *determine_global_metadata(asked), sharded_metadata(metadata)
    )
    merge(common, load_tensors(folder, metadata, asked, elsewhere))
    return apply_factory_merges(common, factories)


def load_tensors(
    folder: Path, metadata: Metadata, sharded: dict[str, Any], elsewhere: frozenset[str] = frozenset()
) -> dict[str, Any]:
    """Tensors and objects of `sharded`: core's `load` of the torch_dist strategy, step for step.

    The reader and the planner are those of `storage_reader`. core has no slot for them.

    Args:
        folder: one iteration's.
        metadata: its `.metadata`, checked.
        sharded: core's description of what is asked for; its tensors are filled in place.
        elsewhere: files that other nodes keep.

    Raises:
        CheckpointException: an item is damaged, or cannot be read, on any rank.
        OnEveryRank: an object is not what core saves.
    """
    entries, structure, renamed = _replace_state_dict_keys_with_sharded_keys(sharded)
    tensors = [entry for entry in nested_values(sharded) if isinstance(entry, ShardedTensor)]
    planner = Planner(
        shapes_validation_sharded_tensors=[entry for entry in tensors if not entry.allow_shape_mismatch],
        allow_shape_mismatch_sharded_tensors={entry.key: entry for entry in tensors if entry.allow_shape_mismatch},
    )
    state = mcore_to_pyt_state_dict(entries, is_loading=True)
    total = sum(entry.data.nbytes for entry in tensors if entry.data is not None)
    # Ranks read about as many bytes, so the first one's progress is shown for all.
    with Progress("reading", total) if parallel.rank() == 0 else nullcontext() as progress:
        reader = Reader(folder, metadata, progress, elsewhere)
        dcp.load(state, storage_reader=reader, planner=planner)
    finish_together(reader.records, parallel.rank(), parallel.from_all_ranks)
    unwrapped = {key: _unwrap_pyt_sharded_tensor(value) for key, value in state.items()}
    parallel.all_or_none(lambda: _check_objects(folder, unwrapped, renamed))
    loaded = _replace_sharded_keys_with_state_dict_keys(unwrapped, structure, renamed)
    _restore_dict_types(loaded, sharded)
    return loaded


def _check_objects(folder: Path, unwrapped: dict[str, Any], renamed: dict[str, Any]) -> None:
    """Raise where an object of this rank is not what core saves; others may have other objects."""
    for key, values in unwrapped.items():
        if type(values) is not list or len(values) != len(renamed[key]):
            raise UserError(f"{folder}: object {key} is no list of {len(renamed[key])}; copy the checkpoint again.")


def sharded_metadata(metadata: Metadata) -> dict[str, Any]:
    """core's description of what the checkpoint has: whole tensors, and objects, by key.

    Objects whose keys have another form than core's are left out: no model asks for them.
    """
    found: dict[str, Any] = {}
    for key, entry in metadata.state_dict_metadata.items():
        if isinstance(entry, TensorStorageMetadata):
            whole = torch.empty(entry.size, dtype=entry.properties.dtype, device="meta")
            found[key] = ShardedTensor.from_rank_offsets(key, whole).without_data()
        elif _OBJECT_KEY.fullmatch(key):
            found[key] = ShardedObject.empty_from_unique_key(key)
    return found
