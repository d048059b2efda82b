"""A checkpoint in the layout of 2023 (`mp_rank_TT[_PPP]/model_rng.pt`), as a source.

Rules, as the original converters of September and October wrote them; every rank's file is one shard:
    qkv       MHA: `query_key_value`, per head [q, k, v]. GQA, September: `query`, and `key_value` per group [k, v].
              GQA, October: `query_key_value`, the rank's query heads, then per group [k, v].
    gate/up   September: `dense_h_to_4h_1` and `_2`. October: `dense_h_to_4h`, the rank's gate rows, then its up rows.
    norms     zero biases may stand beside them.
    extra     with extra vocabulary, embedding and head are fp32; they come back in the other weights' dtype.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_patch.checkpoint.layout import CheckpointLocation
from megatron_patch.checkpoint.lazy import Cast, LazyTensor, Rows, beside, load, stack
from megatron_patch.checkpoint.mapping import EMBEDDING, OUTPUT_LAYER, Place, listed, natural, places
from megatron_patch.checkpoint.source import TORCH_DTYPES, Source
from megatron_patch.checkpoint.source_2023_config import config_2023
from megatron_patch.checkpoint.torch_files import read_torch_file
from megatron_patch.model_config import LlamaConfig

_RANK = re.compile(r"mp_rank_(\d{2})(?:_(\d{3}))?")
_LAYER = re.compile(r"layers\.(\d+)\.(.+)")
_QKV = "decoder.layers.self_attention.linear_qkv.weight"
_FC1 = "decoder.layers.mlp.linear_fc1.weight"
_ROW_SPLIT = {
    "decoder.layers.self_attention.linear_proj.weight": "self_attention.dense.weight",
    "decoder.layers.mlp.linear_fc2.weight": "mlp.dense_4h_to_h.weight",
}
_NORMS = {
    "decoder.layers.self_attention.linear_qkv.layer_norm_weight": "input_layernorm.weight",
    "decoder.layers.mlp.linear_fc1.layer_norm_weight": "post_attention_layernorm.weight",
}
_KNOWN = {
    *_ROW_SPLIT.values(),
    *_NORMS.values(),
    "self_attention.query_key_value.weight",
    "self_attention.query.weight",
    "self_attention.key_value.weight",
    "mlp.dense_h_to_4h.weight",
    "mlp.dense_h_to_4h_1.weight",
    "mlp.dense_h_to_4h_2.weight",
    "self_attention.rotary_emb.inv_freq",
}
_BIASES = ("input_layernorm.bias", "post_attention_layernorm.bias", "final_layernorm.bias")


@dataclass(frozen=True)
class Rank:
    """One rank's file: flat names of the encoder, and the matrices over the vocabulary."""

    path: Path
    arguments: Any
    encoder: dict[str, LazyTensor]
    embedding: LazyTensor | None
    head: LazyTensor | None


@dataclass(frozen=True)
class Ranks:
    """All of them; `files[stage][tp]`. Layers count from 0 in each stage."""

    folder: Path
    files: tuple[tuple[Rank, ...], ...]
    layers: tuple[tuple[int, int], ...]  # (stage, number in it) of each layer of the model

    def shards(self, layer: int, name: str) -> list[LazyTensor]:
        """`name` of `layer` on every tensor-parallel rank."""
        stage, local = self.layers[layer]
        full = f"layers.{local}.{name}"
        for rank in self.files[stage]:
            if full not in rank.encoder:
                raise ValueError(f"{rank.path} lacks {full}; the checkpoint is not whole, or is no LLaMA's.")
        return [rank.encoder[full] for rank in self.files[stage]]

    def has(self, layer: int, name: str) -> bool:
        stage, local = self.layers[layer]
        return f"layers.{local}.{name}" in self.files[stage][0].encoder


def open_2023(location: CheckpointLocation, fallback: LlamaConfig | None = None) -> Source:
    """Find every tensor of a checkpoint of 2023; files go through torch's `weights_only` loader.

    Raises:
        ValueError: a rank's file is missing, damaged or names a class that is not allowed; an unknown or missing tensor;
            or nothing tells the configuration.
    """
    ranks = read_ranks(location.folder)
    config, notes = config_2023(location.root, ranks, fallback)
    norm = ranks.shards(0, "input_layernorm.weight")[0]
    dtype = next(name for name, torch_dtype in TORCH_DTYPES.items() if torch_dtype == norm.dtype)
    tensors = {place: _in_dtype(_tensor(ranks, config, place), norm.dtype, place) for place in places(config)}
    return Source(
        kind="megatron_2023",
        root=location.root,
        config=config,
        extra_vocab_size=0,
        dtype=dtype,
        lookup=lambda place: (tensors[place],),
        is_hf=False,
        notes=notes,
    )


def read_ranks(folder: Path) -> Ranks:
    """Every rank's file, looked through."""
    paths: dict[tuple[int, int], Path] = {}
    for rank in sorted(folder.iterdir()):
        match = _RANK.fullmatch(rank.name)
        if match:
            paths[int(match[2] or 0), int(match[1])] = _weights_file(rank)
    stages, width = max(stage for stage, _ in paths) + 1, max(tp for _, tp in paths) + 1
    for stage in range(stages):
        for tp in range(width):
            if (stage, tp) not in paths:
                name = f"mp_rank_{tp:02d}" + (f"_{stage:03d}" if stages > 1 else "")
                raise ValueError(f"{folder / name} is missing, and ranks beyond it are there; copy the checkpoint again.")
    files = tuple(tuple(_read_rank(paths[stage, tp]) for tp in range(width)) for stage in range(stages))
    _check_layout(folder, files[0][0], width, stages)
    return Ranks(folder, files, _layers(files))


def _weights_file(rank: Path) -> Path:
    for name in ("model_optim_rng.pt", "model_rng.pt"):
        if (rank / name).is_file():
            return rank / name
    raise ValueError(f"{rank} holds neither model_optim_rng.pt nor model_rng.pt; copy the checkpoint again.")


def _check_layout(folder: Path, first: Rank, width: int, stages: int) -> None:
    for name, found in (("tensor_model_parallel_size", width), ("pipeline_model_parallel_size", stages)):
        recorded = getattr(first.arguments, name, found)
        if recorded != found:
            raise ValueError(f"{folder} was written with {name} {recorded}, and files for {found} are there; copy it again.")


def _layers(files: tuple[tuple[Rank, ...], ...]) -> tuple[tuple[int, int], ...]:
    layers = []
    for stage, ranks in enumerate(files):
        numbers = {int(match[1]) for name in ranks[0].encoder if (match := _LAYER.fullmatch(name))}
        if numbers != set(range(len(numbers))):
            raise ValueError(f"{ranks[0].path} has the layers {sorted(numbers)}; they must count from 0 without a gap.")
        layers += [(stage, number) for number in range(len(numbers))]
    return tuple(layers)


def _read_rank(path: Path) -> Rank:
    content = read_torch_file(path)
    try:
        model = content["model"]
        language_model = model["language_model"]
        encoder = language_model["encoder"] if "encoder" in language_model else language_model["transformer"]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} is no checkpoint of a language model of 2023: {error} is not in it.") from None
    encoder = _checked(path, encoder)
    embedding = language_model.get("embedding", {}).get("word_embeddings", {}).get("weight")
    head = language_model.get("output_layer", {}).get("weight")
    if head is None:
        head = model.get("lm_head", {}).get("weight")
    return Rank(path, content.get("args"), encoder, embedding, head)


def _checked(path: Path, encoder: dict[str, LazyTensor]) -> dict[str, LazyTensor]:
    """The encoder's tensors without its norms' biases, which must be zero."""
    kept, unknown = {}, []
    for name, tensor in encoder.items():
        match = _LAYER.fullmatch(name)
        short = match[2] if match else name
        if short in _BIASES:
            if bool(load(tensor).any()):
                raise ValueError(f"{path}: {name} is not zero, and a LLaMA's norm has no bias; it would be lost.")
        elif short in _KNOWN or name == "final_layernorm.weight":
            kept[name] = tensor
        elif not short.endswith("_extra_state"):
            unknown.append(name)
    if unknown:
        raise ValueError(f"{path} holds tensors that a LLaMA does not have: {listed(sorted(unknown, key=natural))}.")
    return kept


def _in_dtype(tensor: LazyTensor, dtype: Any, place: Place) -> LazyTensor:
    return tensor if tensor.dtype == dtype else Cast(tensor, dtype, str(place))


def _tensor(ranks: Ranks, config: LlamaConfig, place: Place) -> LazyTensor:
    key, layer = place.entry.key, place.layer
    if layer is None:
        return _outside_layers(ranks, key)
    if key in _NORMS:
        return ranks.shards(layer, _NORMS[key])[0]
    if key in _ROW_SPLIT:
        return beside(ranks.shards(layer, _ROW_SPLIT[key]))
    rule: Callable[[Ranks, LlamaConfig, int], LazyTensor] = {_QKV: _qkv, _FC1: _gate_up}[key]
    return rule(ranks, config, layer)


def _outside_layers(ranks: Ranks, key: str) -> LazyTensor:
    stage = ranks.files[0 if key == EMBEDDING else -1]
    found = {
        EMBEDDING: [rank.embedding for rank in stage],
        OUTPUT_LAYER: [rank.head for rank in stage],
        "decoder.final_layernorm.weight": [stage[0].encoder.get("final_layernorm.weight")],
    }[key]
    for rank, tensor in zip(stage, found):
        if tensor is None:
            raise ValueError(f"{rank.path} lacks what becomes {key}; the checkpoint is not whole, or is no LLaMA's.")
    return stack([tensor for tensor in found if tensor is not None])


def _gate_up(ranks: Ranks, config: LlamaConfig, layer: int) -> LazyTensor:
    if ranks.has(layer, "mlp.dense_h_to_4h_1.weight"):
        return stack(ranks.shards(layer, "mlp.dense_h_to_4h_1.weight") + ranks.shards(layer, "mlp.dense_h_to_4h_2.weight"))
    shards = ranks.shards(layer, "mlp.dense_h_to_4h.weight")
    half = shards[0].shape[0] // 2
    return stack([Rows(shard, start, start + half) for start in (0, half) for shard in shards])


def _qkv(ranks: Ranks, config: LlamaConfig, layer: int) -> LazyTensor:
    """Per group: its query heads, its key head, its value head."""
    head, per_group = config.kv_channels, config.num_attention_heads // config.num_query_groups
    if ranks.has(layer, "self_attention.query.weight"):
        queries = ranks.shards(layer, "self_attention.query.weight")
        key_values = ranks.shards(layer, "self_attention.key_value.weight")
        return stack([part for q, kv in zip(queries, key_values) for part in _by_group(q, 0, kv, 0, per_group, head)])
    shards = ranks.shards(layer, "self_attention.query_key_value.weight")
    if per_group == 1:
        return stack(shards)
    parts = []
    for shard in shards:
        groups = shard.shape[0] // ((per_group + 2) * head)
        parts += _by_group(shard, 0, shard, groups * per_group * head, per_group, head)
    return stack(parts)


def _by_group(
    queries: LazyTensor, q_start: int, key_values: LazyTensor, kv_start: int, per_group: int, head: int
) -> list[LazyTensor]:
    """A rank's query heads and its [k, v] by group, interleaved."""
    height = per_group * head
    groups = (key_values.shape[0] - kv_start) // (2 * head)
    parts: list[LazyTensor] = []
    for group in range(groups):
        parts.append(Rows(queries, q_start + group * height, q_start + (group + 1) * height))
        parts.append(Rows(key_values, kv_start + group * 2 * head, kv_start + (group + 1) * 2 * head))
    return parts


