"""A new native checkpoint's files: what megatron-core's dist_checkpointing writes, from tensors that are streamed."""

from __future__ import annotations

import io
import pickle
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

from megatron_patch.formats.distcp_metadata import COMMON, METADATA, write_backends
from megatron_patch.formats.lazy import LazyTensor, Rows
from megatron_patch.formats.streaming import Item, Written, partition, write_distcp, write_files
from megatron_patch.weights.source import Source
from megatron_patch.weights.table import TABLE, Place, places

_DCP_VERSION = "1.0.0"
_OBJECTS_FILE = "__0_objects.distcp"
# core's linear layers save an empty object a layer under these names, and ask for it when loading.
_OBJECT_KEYS = tuple(
    entry.key.removesuffix("weight") + "_extra_state" for entry in TABLE if entry.per_layer and entry.key.endswith(".weight")
)


def native_items(source: Source) -> list[Item]:
    """Every chunk of the checkpoint: one a layer, and two for the gate and up rows, as core cuts them."""
    items = []
    for place in places(source.config):
        tensor = source.megatron(place)
        for start, chunk in _chunks(place, tensor):
            offsets = (start, *(0 for _ in tensor.shape[1:]))
            if place.layer is None:
                items.append(Item(place.entry.key, chunk, tuple(chunk.shape), offsets))
            else:
                items.append(Item(place.entry.key, chunk, (1, *chunk.shape), (place.layer, *offsets)))
    return items


def _chunks(place: Place, tensor: LazyTensor) -> list[tuple[int, LazyTensor]]:
    if place.entry.rule != "gate_up":
        return [(0, tensor)]
    half = tensor.shape[0] // 2
    return [(0, Rows(tensor, 0, half)), (half, Rows(tensor, half, 2 * half))]


def write_native(folder: Path, source: Source, max_file_bytes: int, on_bytes: Callable[[int], None]) -> list[Written]:
    """Write `source` into the empty `folder` so that megatron.core.dist_checkpointing loads it at any layout."""
    files = partition(native_items(source), max_file_bytes)
    named = [(f"__0_{number}.distcp", items) for number, items in enumerate(files)]
    written = write_files(folder, named, write_distcp, on_bytes)
    objects = _write_objects(folder)
    metadata = _metadata(source, written, objects)
    (folder / METADATA).write_bytes(pickle.dumps(metadata))
    torch.save({"content_metadata": {}}, folder / COMMON)
    write_backends(folder)
    return written


def _write_objects(folder: Path) -> _StorageInfo:
    """The empty object that every linear layer's `_extra_state` is: written once, named by each."""
    stream = io.BytesIO()
    torch.save([None], stream)
    (folder / _OBJECTS_FILE).write_bytes(stream.getvalue())
    return _StorageInfo(_OBJECTS_FILE, 0, len(stream.getvalue()))


def _metadata(source: Source, written: Sequence[Written], objects: _StorageInfo) -> Metadata:
    chunks: dict[str, list[Written]] = defaultdict(list)
    for one in written:
        chunks[one.item.name].append(one)
    entries: dict[str, TensorStorageMetadata | BytesStorageMetadata] = {}
    storage = {}
    for key, parts in chunks.items():
        entries[key] = _entry(parts)
        for part in parts:
            storage[MetadataIndex(key, part.item.offset)] = _StorageInfo(part.file, part.offset, part.length)
    layers = source.config.num_layers
    for name in (f"{key}/shard_{layer}_{layers}" for layer in range(layers) for key in _OBJECT_KEYS):
        entries[name] = BytesStorageMetadata()
        storage[MetadataIndex(name)] = objects
    return Metadata(
        state_dict_metadata=entries,
        storage_data=storage,
        storage_meta=StorageMeta(),
        version=_DCP_VERSION,
    )


def _entry(parts: Sequence[Written]) -> TensorStorageMetadata:
    ends = [tuple(start + size for start, size in zip(part.item.offset, part.item.shape)) for part in parts]
    return TensorStorageMetadata(
        properties=TensorProperties(dtype=parts[0].item.tensor.dtype),
        size=torch.Size([max(axis) for axis in zip(*ends)]),
        chunks=[ChunkStorageMetadata(offsets=torch.Size(part.item.offset), sizes=torch.Size(part.item.shape)) for part in parts],
    )
