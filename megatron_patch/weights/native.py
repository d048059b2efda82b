"""A native checkpoint, megatron-core's torch_dist, as a source.

A tensor lies in the files in chunks, and whoever saved it decided how it was cut: by layer, by tensor-parallel rank,
by gate and up. Here each layer's tensor is put together, however it was cut. Optimizer state beside the weights is not
looked at.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import groupby
from math import prod
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from megatron_patch.errors import UserError
from megatron_patch.folders.layout import CheckpointLocation, read_model_description
from megatron_patch.formats.distcp import locate_item
from megatron_patch.formats.distcp_metadata import inside, read_backends, read_dcp_metadata
from megatron_patch.formats.dtypes import WEIGHT_NAMES, of_torch
from megatron_patch.formats.lazy import FileTensor, LazyTensor, beside, stack
from megatron_patch.llama.model_config import LlamaConfig, read_hf_config
from megatron_patch.weights.table import BY_KEY, EMBEDDING, Place, Source, listed, megatron_shape, places


@dataclass(frozen=True)
class _Chunk:
    """A block of one layer's tensor."""

    starts: tuple[int, ...]  # its first row, and for a matrix its first column, in the whole tensor
    tensor: FileTensor  # [R] or [R, C]


def open_native(location: CheckpointLocation, fallback: LlamaConfig | None = None) -> Source:
    """Find every weight of a torch_dist folder; the tensors' bytes are not read.

    Args:
        location: the iteration's folder, and the root that it lies in.
        fallback: the model, where neither model.json nor config.json tells it.

    Raises:
        UserError: it is no torch_dist, or a file or tensor is missing, truncated or of another shape. The message names
            it.
    """
    read_backends(location.folder)  # raises for core's other formats, whose tensors would be looked for in vain
    metadata = read_dcp_metadata(location.folder)
    description = read_model_description(location)
    config = description.model if description else _config(location.root, fallback)
    missing = sorted(key for key in BY_KEY if not isinstance(metadata.state_dict_metadata.get(key), TensorStorageMetadata))
    if missing:
        raise UserError(f"{location.folder} lacks the weights {listed(missing)}; it is no checkpoint of a LLaMA.")
    extra = description.extra_vocab_size if description else 0
    stored = _storage(metadata)
    located: dict[tuple[Path, int], FileTensor] = {}
    tensors = {place: _tensor(location.folder, metadata, stored, located, config, place) for place in places(config)}
    for place, tensor in tensors.items():
        _check_shape(location.folder, config, extra, place, tuple(tensor.shape))
    return Source(
        kind="native",
        root=location.root,
        config=config,
        extra_vocab_size=extra,
        dtype=_dtype_name(location.folder, metadata),
        lookup=lambda place: (tensors[place],),
        is_hf=False,
    )


def _config(root: Path, fallback: LlamaConfig | None) -> LlamaConfig:
    """The model of a checkpoint that another program wrote, without model.json."""
    if fallback is not None and not (root / "config.json").is_file():
        return fallback
    return read_hf_config(root)


def _storage(metadata: Metadata) -> dict[tuple[str, tuple[int, ...]], Any]:
    """Where each chunk lies in the files, by its key and offsets; of the model's keys alone."""
    return {(index.fqn, tuple(index.offset or ())): info for index, info in metadata.storage_data.items() if index.fqn in BY_KEY}


def _tensor(
    folder: Path,
    metadata: Metadata,
    stored: dict[tuple[str, tuple[int, ...]], Any],
    located: dict[tuple[Path, int], FileTensor],
    config: LlamaConfig,
    place: Place,
) -> LazyTensor:
    """The tensor of `place`, put together from its chunks; see `megatron_shape` for its shape.

    located: the chunks that were found before, by file and offset. One chunk may hold several layers.
    """
    key = place.entry.key
    entry = metadata.state_dict_metadata[key]
    assert isinstance(entry, TensorStorageMetadata), "open_native has looked"
    axes = len(megatron_shape(config, key, 0)) + (place.layer is not None)
    if len(entry.size) != axes:
        raise UserError(f"{folder}: {key} has shape {list(entry.size)}; a LLaMA's has {axes} axes.")
    if place.layer is not None and entry.size[0] != config.num_layers:
        raise UserError(f"{folder}: {key} has {entry.size[0]} layers, and the configuration {config.num_layers}.")
    chunks = []
    for chunk in entry.chunks:
        starts, sizes = tuple(chunk.offsets), tuple(chunk.sizes)
        if place.layer is not None and not starts[0] <= place.layer < starts[0] + sizes[0]:
            continue
        info = stored.get((key, starts))
        if info is None:
            raise UserError(f"{folder}/.metadata does not say where {place} lies; the checkpoint is damaged.")
        path = inside(folder, info.relative_path)
        if (path, info.offset) not in located:
            located[path, info.offset] = locate_item(path, str(place), info.offset, info.length, sizes)
        found = located[path, info.offset]
        if found.dtype != entry.properties.dtype:
            raise UserError(f"{path}: {place} is {found.dtype} there, and {entry.properties.dtype} in .metadata; it is damaged.")
        chunks.append(_without_layer_axis(found, starts, place.layer))
    return _assembled(folder, place, chunks)


def _without_layer_axis(found: FileTensor, starts: tuple[int, ...], layer: int | None) -> _Chunk:
    """The part of `found` [L, …], which starts at layer `starts[0]`, that is `layer`'s, as a place in the file.

    Without a layer it is the whole of `found`.
    """
    if layer is None:
        return _Chunk(starts, found)
    shape = found.shape[1:]
    skipped = (layer - starts[0]) * prod(shape) * found.dtype.itemsize
    return _Chunk(starts[1:], replace(found, shape=shape, offset=found.offset + skipped))


def _assembled(folder: Path, place: Place, chunks: list[_Chunk]) -> LazyTensor:
    """The tensor that `chunks` make: those of the same first row beside each other, the bands below each other.

    Raises:
        UserError: they leave a gap or overlap.
    """
    chunks.sort(key=lambda chunk: chunk.starts)
    bands: list[LazyTensor] = []
    height = 0
    for start, band in groupby(chunks, key=lambda chunk: chunk.starts[0]):
        blocks = list(band)
        widths = [0]
        for block in blocks:
            widths.append(widths[-1] + (block.tensor.shape[1] if len(block.tensor.shape) > 1 else 0))
        columns = [block.starts[1] if len(block.starts) > 1 else 0 for block in blocks]
        if start != height or columns != widths[:-1] or len({block.tensor.shape[0] for block in blocks}) > 1:
            raise UserError(f"{folder}: the chunks of {place} leave a gap or overlap; the checkpoint is damaged.")
        bands.append(beside([block.tensor for block in blocks]))
        height += bands[-1].shape[0]
    return stack(bands)


def _check_shape(folder: Path, config: LlamaConfig, extra: int, place: Place, got: tuple[int, ...]) -> None:
    """Raise for a shape that the model does not have.

    Rows of vocabulary beyond the expected ones are padding, and allowed.
    """
    expected = megatron_shape(config, place.entry.key, extra)
    if got == expected or (place.is_vocabulary and got[0] >= expected[0] and got[1:] == expected[1:]):
        return
    raise UserError(f"{folder}: {place} has shape {list(got)}, and the configuration makes it {list(expected)}.")


def _dtype_name(folder: Path, metadata: Metadata) -> str:
    embedding = metadata.state_dict_metadata[EMBEDDING]
    assert isinstance(embedding, TensorStorageMetadata), "open_native has looked"
    name = of_torch(embedding.properties.dtype).name
    if name not in WEIGHT_NAMES:
        raise UserError(f"{folder}: weights are {name}; allowed are {', '.join(WEIGHT_NAMES)}.")
    return name
