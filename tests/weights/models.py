"""Hugging Face folders of random weights, written and read by the safetensors library, not by this project."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from megatron_patch.formats.lazy import load
from megatron_patch.llama.model_config import LlamaConfig, to_hf_config
from megatron_patch.weights.table import BY_KEY, Place, Source, hf_shapes, places
from tests.launching import GOLDEN

SMALL = LlamaConfig(2, 16, 24, 4, 2, vocab_size=40, rotary_base=1e6, max_position_embeddings=16384)
TOKENIZER_FILES = ("tokenizer.model", "tokenizer_config.json", "special_tokens_map.json")


def random_weights(config: LlamaConfig, dtype: torch.dtype = torch.bfloat16) -> dict[str, torch.Tensor]:
    """Every tensor of the model, with numbers that all differ."""
    generator = torch.Generator().manual_seed(7)
    return {
        name: torch.randn(shape, generator=generator).to(dtype)
        for place in places(config)
        for name, shape in zip(place.hf_names, hf_shapes(config, place))
    }


def hf_tensor(source: Source, name: str) -> torch.Tensor:
    """The whole Hugging Face tensor `name` of a checkpoint."""
    (place,) = (place for place in places(source.config) if name in place.hf_names)
    return load(source.hf(place)[place.hf_names.index(name)])


def megatron_tensor(source: Source, key: str, layer: int | None = None) -> torch.Tensor:
    """The whole Megatron tensor `key`, of `layer`."""
    return load(source.megatron(Place(BY_KEY[key], layer)))


def write_hf(folder: Path, config: LlamaConfig, weights: dict[str, torch.Tensor], shards: int = 1) -> Path:
    """Write a folder as transformers does: one model.safetensors, or shards with an index."""
    folder.mkdir(parents=True)
    dtype = str(weights["lm_head.weight"].dtype).removeprefix("torch.")
    (folder / "config.json").write_text(json.dumps(to_hf_config(config, dtype=dtype)))
    for name in TOKENIZER_FILES:
        (folder / name).write_bytes((GOLDEN / "hf_mha" / name).read_bytes())
    if shards == 1:
        save_file(weights, folder / "model.safetensors")
        return folder
    where = {}
    for number in range(shards):
        file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        part = {name: tensor for place, (name, tensor) in enumerate(weights.items()) if place % shards == number}
        save_file(part, folder / file)
        where |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return folder


def read_hf(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a folder's safetensors files."""
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def assert_same(got: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    """Assert that names, dtypes and all bits are the same."""
    assert set(got) == set(wanted)
    for name, tensor in wanted.items():
        assert got[name].dtype == tensor.dtype, name
        assert torch.equal(got[name], tensor), name
