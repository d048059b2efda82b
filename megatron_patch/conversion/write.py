"""A new checkpoint's files, from tensors that are streamed: a Hugging Face folder, or a native checkpoint.

The latter is what megatron-core's dist_checkpointing writes.
"""

from __future__ import annotations

import io
import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from megatron_patch.folders.hugging_face_folder import holds_tokenizer
from megatron_patch.folders.layout import TOKENIZER_FILES, copy_companions
from megatron_patch.formats.distcp_metadata import COMMON, CORE_METADATA, METADATA, backends_file
from megatron_patch.formats.json_files import json_object
from megatron_patch.formats.lazy import LazyTensor, Rows, nbytes
from megatron_patch.formats.new_metadata import Chunk, Span, metadata_file
from megatron_patch.formats.streaming import Item, Written, partition, plan_distcp, plan_safetensors, write_files
from megatron_patch.llama.model_config import to_hf_config
from megatron_patch.llama.rope_scaling import read_rope, rope_keys
from megatron_patch.weights.table import TABLE, Place, Source, places

INDEX = "model.safetensors.index.json"
_OBJECTS_FILE = "__0_objects.distcp"
# core's linear layers save an empty object a layer under these names, and ask for it when they load.
_OBJECT_KEYS = tuple(
    entry.key.removesuffix("weight") + "_extra_state" for entry in TABLE if entry.per_layer and entry.key.endswith(".weight")
)


def write_hf(folder: Path, source: Source, max_shard_bytes: int, on_bytes: Callable[[int], None]) -> list[Written]:
    """Write `source` into the empty `folder`: safetensors shards, their index, config.json, the tokenizer.

    Args:
        folder: an empty one.
        source: what to write.
        max_shard_bytes: no file becomes larger, unless a single tensor is.
        on_bytes: is told how many bytes have been written, from several threads.

    Returns:
        Where each tensor lies.

    Raises:
        UserError: a tensor cannot be read, or float16 cannot hold its values.
    """
    shards = partition(_hf_items(source), max_shard_bytes)
    named = [(f"model-{n:05d}-of-{len(shards):05d}.safetensors", items) for n, items in enumerate(shards, start=1)]
    written = write_files(folder, named, plan_safetensors, on_bytes)
    index = {
        "metadata": {"total_size": sum(nbytes(one.item.tensor) for one in written)},
        "weight_map": {one.item.name: one.file for one in written},
    }
    write_json(folder / INDEX, index)
    write_json(folder / "config.json", _config(source))
    copy_beside(source, folder, ("generation_config.json",))
    if not (folder / "generation_config.json").exists():
        write_json(folder / "generation_config.json", _generation_config(folder))
    return written


def copy_beside(source: Source, folder: Path, names: tuple[str, ...]) -> None:
    """Copy `names` and the tokenizer's files from beside the weights; from beside an adapter if these are there.

    PEFT's users save the tokenizer with the adapter where they added tokens. Files of two tokenizers do not mix.

    Raises:
        UserError: one of them is a Git LFS pointer, or empty.
    """
    beside_adapter = source.adapter is not None and holds_tokenizer(source.adapter)
    copy_companions(source.adapter if source.adapter and beside_adapter else source.root, folder, TOKENIZER_FILES)
    copy_companions(source.root, folder, names)


def _hf_items(source: Source) -> list[Item]:
    """Every Hugging Face tensor, in the order in which the model computes."""
    return [
        Item(name, tensor, tuple(tensor.shape))
        for place in places(source.config)
        for name, tensor in zip(place.hf_names, source.hf(place))
    ]


def _config(source: Source) -> dict[str, Any]:
    """The source's own config.json with this vocabulary, dtype and position limit; without one, a new one.

    Rotary positions are written in the spelling that every transformers reads: version 4 knows no `rope_parameters`.
    """
    made = to_hf_config(source.config, dtype=source.dtype, extra_vocab_size=source.extra_vocab_size)
    path = source.root / "config.json"
    if not path.is_file():
        return made
    content = json_object(path)
    content |= rope_keys(read_rope(content)) | {key: made[key] for key in ("vocab_size", "max_position_embeddings")}
    content.pop("rope_parameters", None)
    for key in ("torch_dtype", "dtype"):  # transformers 5 writes `dtype`
        if key in content:
            content[key] = source.dtype
    if not {"torch_dtype", "dtype"} & content.keys():
        content["torch_dtype"] = source.dtype
    return content


def _generation_config(folder: Path) -> dict[str, Any]:
    """What transformers itself makes of a config.json that no generation_config.json stands beside."""
    config = json_object(folder / "config.json")
    tokens = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if config.get(key) is not None}
    return {"_from_model_config": True, **tokens}


def write_native(folder: Path, source: Source, max_file_bytes: int, on_bytes: Callable[[int], None]) -> list[Written]:
    """Write `source` so that megatron.core.dist_checkpointing loads it at any TP and PP.

    Args:
        folder: an empty one.
        source: what to write.
        max_file_bytes: no file becomes larger, unless a single chunk is.
        on_bytes: is told how many bytes have been written, from several threads.

    Returns:
        Where each chunk lies.

    Raises:
        UserError: a tensor cannot be read, or float16 cannot hold its values.
    """
    files = partition(_native_items(source), max_file_bytes)
    named = [(f"__0_{number}.distcp", items) for number, items in enumerate(files)]
    written = write_files(folder, named, plan_distcp, on_bytes)
    (folder / METADATA).write_bytes(_metadata(source, written, _write_objects(folder)))
    torch.save({"content_metadata": {}}, folder / COMMON)
    (folder / CORE_METADATA).write_bytes(backends_file())
    return written


def _native_items(source: Source) -> list[Item]:
    """Every chunk of the checkpoint: one a layer, and two of gate and up, since core cuts these too."""
    items = []
    for place in places(source.config):
        tensor = source.megatron(place)
        for start, chunk in _chunks(place, tensor):
            offsets = (start, *(0 for _ in tensor.shape[1:]))
            if place.layer is None:
                items.append(Item(place.entry.key, chunk, tuple(chunk.shape), offsets))
            else:  # one key for all layers: in the files the first axis is the layer
                items.append(Item(place.entry.key, chunk, (1, *chunk.shape), (place.layer, *offsets)))
    return items


def _chunks(place: Place, tensor: LazyTensor) -> list[tuple[int, LazyTensor]]:
    """(first row, rows) of each chunk of one layer's tensor."""
    if place.entry.rule != "gate_up":
        return [(0, tensor)]
    half = tensor.shape[0] // 2
    return [(0, Rows(tensor, 0, half)), (half, Rows(tensor, half, 2 * half))]


def _write_objects(folder: Path) -> Span:
    """Write the empty object that every linear layer's `_extra_state` is: once, for all of them to name."""
    stream = io.BytesIO()
    torch.save([None], stream)
    (folder / _OBJECTS_FILE).write_bytes(stream.getvalue())
    return Span(_OBJECTS_FILE, 0, len(stream.getvalue()))


def _metadata(source: Source, written: Sequence[Written], objects: Span) -> bytes:
    """What .metadata says of the chunks, and of the object that all `_extra_state`s are."""
    parts: dict[str, list[Written]] = defaultdict(list)
    for one in written:
        parts[one.item.name].append(one)
    chunks = []
    for key, found in parts.items():
        ends = [tuple(start + size for start, size in zip(one.item.offset, one.item.shape)) for one in found]
        whole = tuple(max(axis) for axis in zip(*ends))
        chunks += [
            Chunk(key, whole, one.item.offset, one.item.shape, one.item.tensor.dtype, Span(one.file, one.offset, one.length))
            for one in found
        ]
    layers = source.config.num_layers
    names = (f"{key}/shard_{layer}_{layers}" for layer in range(layers) for key in _OBJECT_KEYS)
    return metadata_file(chunks, dict.fromkeys(names, objects))


def write_json(path: Path, content: dict[str, Any]) -> None:
    """`content` as Hugging Face's libraries write it, indented, ending in a line break."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
