"""A new Hugging Face folder's files: safetensors shards with an index, config.json, and what stood beside the source's."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from megatron_patch.folders.layout import TOKENIZER_FILES, copy_companions
from megatron_patch.formats.json_files import json_object
from megatron_patch.formats.lazy import nbytes
from megatron_patch.formats.streaming import Item, Written, partition, write_files, write_safetensors
from megatron_patch.llama.model_config import to_hf_config
from megatron_patch.llama.rope_scaling import read_rope, rope_keys
from megatron_patch.weights.source import Source
from megatron_patch.weights.table import places

INDEX = "model.safetensors.index.json"


def hf_items(source: Source) -> list[Item]:
    """Every Hugging Face tensor, in the order in which the model computes."""
    return [
        Item(name, tensor, tuple(tensor.shape))
        for place in places(source.config)
        for name, tensor in zip(place.hf_names, source.hf(place))
    ]


def write_hf(folder: Path, source: Source, max_shard_bytes: int, on_bytes: Callable[[int], None]) -> list[Written]:
    """Write the shards, their index and config.json of `source` into the empty `folder`."""
    shards = partition(hf_items(source), max_shard_bytes)
    named = [(f"model-{n:05d}-of-{len(shards):05d}.safetensors", items) for n, items in enumerate(shards, start=1)]
    written = write_files(folder, named, write_safetensors, on_bytes)
    index = {
        "metadata": {"total_size": sum(nbytes(one.item.tensor) for one in written)},
        "weight_map": {one.item.name: one.file for one in written},
    }
    write_json(folder / INDEX, index)
    write_json(folder / "config.json", _config(source))
    copy_companions(source.root, folder, ("generation_config.json", *TOKENIZER_FILES))
    if not (folder / "generation_config.json").exists():
        write_json(folder / "generation_config.json", _generation_config(folder))
    return written


def _config(source: Source) -> dict[str, Any]:
    """The source's own config.json with this vocabulary, dtype and position limit; without one, all that the model needs.

    Rotary positions are written in the spelling that every transformers reads; `rope_parameters` means nothing to version 4.
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
    config = json_object(folder / "config.json")
    tokens = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if config.get(key) is not None}
    return {"_from_model_config": True, **tokens}


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
