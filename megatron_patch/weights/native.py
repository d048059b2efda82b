"""A native checkpoint, megatron-core's torch_dist, as a source.

A tensor lies in the files in chunks, and whoever saved it decided how it was cut: by layer, by tensor-parallel rank,
by gate and up. Here each layer's tensor is put together, however it was cut. Optimizer state beside the weights is not
looked at.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from itertools import groupby
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_patch.errors import UserError
from megatron_patch.folders.adapter_base import ADAPTER
from megatron_patch.folders.layout import CheckpointLocation, read_model_description
from megatron_patch.formats.distcp import locate_item
from megatron_patch.formats.distcp_metadata import inside, read_backends, read_dcp_metadata
from megatron_patch.formats.dtypes import WEIGHT_NAMES, of_torch
from megatron_patch.formats.lazy import FileTensor, LazyTensor, beside, stack
from megatron_patch.llama.model_config import LlamaConfig, read_hf_config
from megatron_patch.weights.table import BY_KEY, EMBEDDING, Place, Source, listed, megatron_shape, places

if TYPE_CHECKING:
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata


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
    files = NativeFiles(location.folder, BY_KEY)
    description = read_model_description(location)
    config = description.model if description else _config(location.root, fallback)
    missing = sorted(key for key in BY_KEY if files.entry(key) is None)
    if missing and any("lora_" in key for key in files.metadata.state_dict_metadata):
        raise UserError(_without_base(location.folder))
    if missing:
        raise UserError(f"{location.folder} lacks the weights {listed(missing)}; it is no checkpoint of a LLaMA.")
    extra = description.extra_vocab_size if description else 0
    tensors = {
        place: files.tensor(place.entry.key, place.layer, config.num_layers, len(megatron_shape(config, place.entry.key)))
        for place in places(config)
    }
    for place, tensor in tensors.items():
        _check_shape(location.folder, config, extra, place, tuple(tensor.shape))
    return Source(
        kind="native",
        root=location.root,
        config=config,
        extra_vocab_size=extra,
        dtype=_dtype_name(files),
        lookup=lambda place: (tensors[place],),
        is_hf=False,
    )


def _without_base(folder: Path) -> str:
    """The sentence about a LoRA run's checkpoint where a whole model is asked for."""
    if not (folder / ADAPTER).is_dir():
        return (
            f"{folder} holds a LoRA run's adapters and not the weights under them, and no folder {ADAPTER}, which a run on disks "
            "of its nodes' own does not write (--local-output): go on from it without that flag, and the next checkpoint has one."
        )
    return (
        f"{folder} holds a LoRA run's adapters and not the weights under them: merge the two first, with model_convertor.sh; to "
        f"train on with the adapters, name these weights, and add --lora-adapter {folder / ADAPTER}."
    )


def _config(root: Path, fallback: LlamaConfig | None) -> LlamaConfig:
    """The model of a checkpoint that another program wrote, without model.json."""
    if fallback is not None and not (root / "config.json").is_file():
        return fallback
    return read_hf_config(root)


class NativeFiles:
    """The tensors of a torch_dist folder, each layer's its own.

    Args:
        folder: one iteration's.
        keys: of the tensors that will be asked for.

    Raises:
        UserError: it is no torch_dist of the common form, or its `.metadata` is damaged.
    """

    def __init__(self, folder: Path, keys: Collection[str]) -> None:
        read_backends(folder)  # raises for core's other formats, whose tensors would be looked for in vain
        self.folder, self.metadata = folder, read_dcp_metadata(folder)
        # Where each chunk lies in the files, by its key and offsets.
        self._stored = {
            (index.fqn, tuple(index.offset or ())): info
            for index, info in self.metadata.storage_data.items()
            if index.fqn in keys
        }
        # The chunks that were found before, by file and offset. One chunk may hold several layers.
        self._located: dict[tuple[Path, int], FileTensor] = {}

    def entry(self, key: str) -> TensorStorageMetadata | None:
        """What `.metadata` says of a tensor; None if there is none of this key."""
        from torch.distributed.checkpoint.metadata import TensorStorageMetadata

        found = self.metadata.state_dict_metadata.get(key)
        return found if isinstance(found, TensorStorageMetadata) else None

    def tensor(self, key: str, layer: int | None, layers: int, axes: int) -> LazyTensor:
        """The tensor of a `key` that the folder has, put together from its chunks.

        Args:
            layer: of which layer; None where the key has one tensor for the whole model.
            layers: of the whole model.
            axes: that a layer's tensor has.

        Raises:
            UserError: its shape is another, or chunks are missing or damaged.
        """
        entry, said, axes = self.entry(key), key if layer is None else f"{key} (layer {layer})", axes + (layer is not None)
        assert entry is not None, "the caller has looked"
        if len(entry.size) != axes:
            raise UserError(f"{self.folder}: {key} has shape {list(entry.size)}; a LLaMA's has {axes} axes.")
        if layer is not None and entry.size[0] != layers:
            raise UserError(f"{self.folder}: {key} has {entry.size[0]} layers, and the configuration {layers}.")
        chunks = []
        for chunk in entry.chunks:
            starts, sizes = tuple(chunk.offsets), tuple(chunk.sizes)
            if layer is None or starts[0] <= layer < starts[0] + sizes[0]:
                chunks.append(_without_layer_axis(self._chunk(key, said, starts, sizes), starts, layer))
        return _assembled(self.folder, said, chunks)

    def _chunk(self, key: str, said: str, starts: tuple[int, ...], sizes: tuple[int, ...]) -> FileTensor:
        info, entry = self._stored.get((key, starts)), self.entry(key)
        if info is None or entry is None:
            raise UserError(f"{self.folder}/.metadata does not say where {said} lies; the checkpoint is damaged.")
        path = inside(self.folder, info.relative_path)
        if (path, info.offset) not in self._located:
            self._located[path, info.offset] = locate_item(path, said, info.offset, info.length, sizes)
        found = self._located[path, info.offset]
        if found.dtype != entry.properties.dtype:
            raise UserError(f"{path}: {said} is {found.dtype} there, and {entry.properties.dtype} in .metadata; it is damaged.")
        return found


def _without_layer_axis(found: FileTensor, starts: tuple[int, ...], layer: int | None) -> _Chunk:
    """The part of `found` [L, …], which starts at layer `starts[0]`, that is `layer`'s, as a place in the file.

    Without a layer it is the whole of `found`.
    """
    if layer is None:
        return _Chunk(starts, found)
    shape = found.shape[1:]
    skipped = (layer - starts[0]) * prod(shape) * found.dtype.itemsize
    return _Chunk(starts[1:], replace(found, shape=shape, offset=found.offset + skipped))


def _assembled(folder: Path, said: str, chunks: list[_Chunk]) -> LazyTensor:
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
            raise UserError(f"{folder}: the chunks of {said} leave a gap or overlap; the checkpoint is damaged.")
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


def _dtype_name(files: NativeFiles) -> str:
    embedding = files.entry(EMBEDDING)
    assert embedding is not None, "open_native has looked"
    name = of_torch(embedding.properties.dtype).name
    if name not in WEIGHT_NAMES:
        raise UserError(f"{files.folder}: weights are {name}; allowed are {', '.join(WEIGHT_NAMES)}.")
    return name
