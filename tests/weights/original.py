"""Write checkpoints as the original's programs do, at any TP and PP, from a Hugging Face folder's weights.

This file follows the original's converters and models and uses torch alone. It shares nothing with this project's
reader.
"""

from __future__ import annotations

import argparse
import json
import shutil
import types
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch

Weights = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Style:
    """How one program writes: names of norms, QKV and feed-forward weights, the file's name, QKV's order of rows."""

    norms: tuple[str, str, str]
    qkv: str = "self_attention.query_key_value.weight"
    projection: str = "self_attention.dense.weight"
    gate_up: str = "mlp.dense_h_to_4h.weight"
    down: str = "mlp.dense_4h_to_h.weight"
    file: str = "model_rng.pt"
    order: str = "per head"  # "per head", "all q first", "separate"
    splits_late: bool = True  # False: gate and up are fused before they are split over the ranks
    keeps_whole: bool = False  # every rank has the whole of [gate; up]
    fused_early: bool = False  # gate and up stand before the last weight in the file
    folder: str = "release"
    biases: tuple[str, ...] = ()
    has_lm_head: bool = True


_PLAIN = ("input_layernorm.weight", "post_attention_layernorm.weight", "final_layernorm.weight")
_TE = ("self_attention.layernorm_qkv.layer_norm_weight", "layernorm_mlp.layer_norm_weight", "final_layernorm.weight")
_TE_NAMES = dict(
    qkv="self_attention.layernorm_qkv.weight",
    projection="self_attention.proj.weight",
    gate_up="layernorm_mlp.fc1_weight",
    down="layernorm_mlp.fc2_weight",
)
_CORE_NAMES = dict(
    qkv="self_attention.linear_qkv.weight",
    projection="self_attention.linear_proj.weight",
    gate_up="mlp.linear_fc1.weight",
    down="mlp.linear_fc2.weight",
    file="model_optim_rng.pt",
)
STYLES = {
    "2023-09": Style(_PLAIN, order="separate", gate_up="", biases=("input_layernorm.bias", "post_attention_layernorm.bias")),
    "2023-10-10": Style(_PLAIN, order="separate", splits_late=False, fused_early=True),
    "2023-10-18 morning": Style(_PLAIN, order="separate", keeps_whole=True),
    "2023-10-18": Style(_PLAIN, order="all q first"),
    "2023-11-10": Style(_PLAIN),
    "2024-03": Style(_PLAIN, file="model_optim_rng.pt"),
    "transformer engine 2023-10-10": Style(
        _TE, **_TE_NAMES, biases=("self_attention.layernorm_qkv.layer_norm_bias", "layernorm_mlp.layer_norm_bias")
    ),
    "transformer engine": Style((*_TE[:2], "final_norm.weight"), **_TE_NAMES),
    "megatron-core early": Style(
        ("self_attention.linear_qkv.layer_norm_weight", "pre_mlp_layernorm.weight", "final_layernorm.weight"), **_CORE_NAMES
    ),
    "megatron-core": Style(
        ("self_attention.linear_qkv.layer_norm_weight", "mlp.linear_fc1.layer_norm_weight", "final_layernorm.weight"),
        **_CORE_NAMES,
    ),
    "trained": Style(
        ("input_norm.weight", "post_attention_norm.weight", "final_norm.weight"),
        file="model_optim_rng.pt",
        fused_early=True,
        folder="iter_0000007",
        has_lm_head=False,
    ),
}


@dataclass(frozen=True)
class Written:
    """What to write: a style, numbers of ranks, extra rows, and arguments to add, change, or with None leave out."""

    style: str
    tp: int = 1
    pp: int = 1
    extra: torch.Tensor | None = None  # [rows, H]
    arguments: dict[str, object] = field(default_factory=dict)
    with_config: bool = True


def write_original(folder: Path, hf: Path, weights: Weights, written: Written) -> Path:
    """Write a checkpoint of the model in the Hugging Face folder `hf` into the new folder `folder`, and return that."""
    style, config = STYLES[written.style], json.loads((hf / "config.json").read_text())
    root = folder / style.folder
    for name in ("config.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json"):
        root.mkdir(parents=True, exist_ok=True)
        if written.with_config or name != "config.json":
            shutil.copyfile(hf / name, folder / name)
    tracker = style.folder.removeprefix("iter_").lstrip("0")
    (folder / "latest_checkpointed_iteration.txt").write_text(tracker)
    for stage in range(written.pp):
        for rank in range(written.tp):
            where = root / (f"mp_rank_{rank:02d}" + (f"_{stage:03d}" if written.pp > 1 else ""))
            where.mkdir()
            torch.save(_file(style, config, weights, written, stage, rank), where / style.file)
    return folder


def _file(style: Style, config: dict, weights: Weights, written: Written, stage: int, rank: int) -> dict:
    layers = config["num_hidden_layers"] // written.pp
    encoder = {}
    for number in range(layers):
        for name, tensor in _layer(style, config, weights, stage * layers + number, written.tp, rank):
            encoder[f"layers.{number}.{name}"] = tensor.clone()
    if stage == written.pp - 1:
        encoder[style.norms[2]] = weights["model.norm.weight"].clone()
        if style.biases:
            encoder["final_layernorm.bias"] = torch.zeros_like(weights["model.norm.weight"])
    ends = {}
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        matrix = weights[name]
        if written.extra is not None:
            trained = style.folder != "release"
            matrix = torch.cat([matrix, written.extra.half()] if trained else [matrix.float(), written.extra])
        ends[name] = matrix.chunk(written.tp)[rank]
    model = _model(style, encoder, *ends.values(), is_first=stage == 0, is_last=stage == written.pp - 1)
    return {"model": model, "checkpoint_version": 3.0, "args": _arguments(style, config, written)}


def _model(style: Style, encoder: dict, embedding: torch.Tensor, head: torch.Tensor, is_first: bool, is_last: bool) -> dict:
    if "linear_qkv" in style.qkv:
        ends = {"embedding.word_embeddings.weight": embedding, "output_layer.weight": head}
        return ends | {f"decoder.{name}": tensor for name, tensor in encoder.items()}
    language_model: dict = {"encoder": encoder}
    model: dict = {"language_model": language_model}
    if is_first:
        language_model["embedding"] = {"word_embeddings": {"weight": embedding}}
        if style.has_lm_head:
            model["lm_head"] = {"weight": head}
    if is_last:
        language_model["output_layer"] = {"weight": head}
        model["word_embeddings_for_head"] = {"weight": embedding.clone()}
    return model


def _arguments(style: Style, config: dict, written: Written) -> object:
    vocabulary, extra = config["vocab_size"], 0 if written.extra is None else len(written.extra)
    values = dict(
        hidden_size=config["hidden_size"], num_layers=config["num_hidden_layers"],
        num_attention_heads=config["num_attention_heads"], tensor_model_parallel_size=written.tp,
        pipeline_model_parallel_size=written.pp, params_dtype=torch.float16, make_vocab_size_divisible_by=128,
    )  # fmt: skip
    groups = config.get("num_key_value_heads") or config["num_attention_heads"]
    is_grouped = groups != config["num_attention_heads"]
    if style.folder != "release":
        values |= dict(padded_vocab_size=vocabulary + extra, extra_vocab_size=extra, group_query_attention=is_grouped)
        values |= dict(num_query_groups=groups if is_grouped else 1, norm_epsilon=1e-5, max_position_embeddings=32)
    elif "layernorm_qkv" in style.qkv:
        values |= dict(padded_vocab_size=vocabulary + extra)
    elif "linear_qkv" in style.qkv:
        values |= dict(orig_vocab_size=vocabulary)
    else:
        values |= dict(orig_vocab_size=vocabulary, padded_vocab_size=vocabulary)
    values = {name: value for name, value in (values | written.arguments).items() if value is not None}
    return argparse.Namespace(**values) if style.folder != "release" else types.SimpleNamespace(**values)


def _layer(style: Style, config: dict, weights: Weights, layer: int, tp: int, rank: int) -> Iterator[tuple[str, torch.Tensor]]:
    own = {name.removeprefix(f"model.layers.{layer}."): w for name, w in weights.items() if f".layers.{layer}." in name}
    yield from _attention(style, config, own, tp, rank)
    yield style.projection, own["self_attn.o_proj.weight"].chunk(tp, dim=1)[rank]
    gate, up = own["mlp.gate_proj.weight"], own["mlp.up_proj.weight"]
    fused = torch.cat([gate.chunk(tp)[rank], up.chunk(tp)[rank]])
    if style.keeps_whole:
        fused = torch.cat([gate, up])
    elif not style.splits_late:
        fused = torch.cat([gate, up]).chunk(tp)[rank]
    if not style.gate_up:
        yield "mlp.dense_h_to_4h_1.weight", gate.chunk(tp)[rank]
        yield "mlp.dense_h_to_4h_2.weight", up.chunk(tp)[rank]
    elif style.fused_early:
        yield style.gate_up, fused
    yield style.down, own["mlp.down_proj.weight"].chunk(tp, dim=1)[rank]
    yield style.norms[0], own["input_layernorm.weight"]
    yield style.norms[1], own["post_attention_layernorm.weight"]
    for name in style.biases:
        yield name, torch.zeros_like(own["input_layernorm.weight"])
    if "query_key_value" in style.qkv:
        yield "self_attention.rotary_emb.inv_freq", torch.ones(4, dtype=torch.float16)
    if style.gate_up and not style.fused_early:
        yield style.gate_up, fused


def _attention(style: Style, config: dict, own: Weights, tp: int, rank: int) -> Iterator[tuple[str, torch.Tensor]]:
    heads = config["num_attention_heads"]
    groups, head = config.get("num_key_value_heads") or heads, config["hidden_size"] // heads
    # [G, rows of one KV head, H], the rank's share of the KV heads
    q, k, v = (own[f"self_attn.{letter}_proj.weight"].view(groups, -1, config["hidden_size"]).chunk(tp)[rank] for letter in "qkv")
    assert k.shape[1] == head
    key_value = torch.cat([k, v], dim=1).flatten(0, 1)
    if groups == heads or style.order == "per head":
        yield style.qkv, torch.cat([q, k, v], dim=1).flatten(0, 1)
    elif style.order == "all q first":
        yield style.qkv, torch.cat([q.flatten(0, 1), key_value])
    else:
        yield "self_attention.query.weight", q.flatten(0, 1)
        yield "self_attention.key_value.weight", key_value
