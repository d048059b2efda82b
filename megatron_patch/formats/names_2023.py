"""Names of weights in the original's checkpoints of 2023 and 2024, and which names mean the same. Imports no torch.

Shapes in comments are those of one tensor-parallel rank: H hidden, F ffn, D head size, N heads, G KV heads, T ranks.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

# What a weight is → how the original's programs spell it (behind `layers.N.`).
SPELLINGS: dict[str, tuple[str, ...]] = {
    "attention_norm": (  # [H]
        "input_layernorm.weight",
        "input_norm.weight",
        "self_attention.layernorm_qkv.layer_norm_weight",
        "self_attention.linear_qkv.layer_norm_weight",
    ),
    "qkv": (  # [(N + 2G)·D / T, H]
        "self_attention.query_key_value.weight",
        "self_attention.layernorm_qkv.weight",
        "self_attention.linear_qkv.weight",
    ),
    "query": ("self_attention.query.weight",),  # [N·D / T, H]
    "key_value": ("self_attention.key_value.weight",),  # [2G·D / T, H]
    "projection": (  # [H, N·D / T]
        "self_attention.dense.weight",
        "self_attention.proj.weight",
        "self_attention.linear_proj.weight",
    ),
    "mlp_norm": (  # [H]
        "post_attention_layernorm.weight",
        "post_attention_norm.weight",
        "layernorm_mlp.layer_norm_weight",
        "pre_mlp_layernorm.weight",
        "mlp.linear_fc1.layer_norm_weight",
    ),
    "gate": ("mlp.dense_h_to_4h_1.weight",),  # [F / T, H]
    "up": ("mlp.dense_h_to_4h_2.weight",),  # [F / T, H]
    "gate_up": ("mlp.dense_h_to_4h.weight", "layernorm_mlp.fc1_weight", "mlp.linear_fc1.weight"),  # [2F / T, H]
    "down": ("mlp.dense_4h_to_h.weight", "layernorm_mlp.fc2_weight", "mlp.linear_fc2.weight"),  # [H, F / T]
}
PART = {name: part for part, names in SPELLINGS.items() for name in names}
FINAL_NORMS = ("final_layernorm.weight", "final_norm.weight")

_NORMS = (*SPELLINGS["attention_norm"], *SPELLINGS["mlp_norm"], *FINAL_NORMS)
_BIASES = {name.removesuffix("weight") + "bias" for name in _NORMS}
_LAYER = re.compile(r"layers\.(\d+)\.(.+)")


def layer_and_name(name: str) -> tuple[int | None, str]:
    """(3, `mlp.…`) for `layers.3.mlp.…`; (None, name) for a weight that belongs to no layer."""
    match = _LAYER.fullmatch(name)
    return (int(match[1]), match[2]) if match else (None, name)


def is_norm_bias(name: str) -> bool:
    """Whether this is the bias of a norm. LLaMA has none, so a reader takes it only if it is zero."""
    return layer_and_name(name)[1] in _BIASES


def is_without_weights(name: str) -> bool:
    """Whether this entry holds no weights.

    Rotary frequencies follow from config.json. Transformer Engine's `_extra_state` holds the scales of fp8.
    """
    return name.endswith(("rotary_emb.inv_freq", "rotary_pos_emb.inv_freq", "_extra_state"))


def family(names: Iterable[str]) -> str:
    """Which program wrote these names of one layer: `converted`, `trained`, `transformer_engine` or `megatron_core`.

    Only training spells the norms `input_norm` and `post_attention_norm`. Converters spelt them `*_layernorm`, as the
    model of September 2023 did.
    """
    names = set(names)
    if names & {"input_norm.weight", "post_attention_norm.weight"}:
        return "trained"
    if any("linear_" in name for name in names):
        return "megatron_core"
    return "transformer_engine" if any("layernorm_qkv." in name for name in names) else "converted"
