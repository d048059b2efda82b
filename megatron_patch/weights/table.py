"""The Hugging Face ↔ Megatron table of LLaMA's weights, as data that both directions use.

Megatron keys are those of megatron-core's GPTModel with Transformer Engine's norm names; per-layer tensors have one
entry a layer, which torch_dist stacks along a first axis. Shapes: V vocabulary with extra rows, H hidden, F ffn, N heads,
G KV groups, D head size. Fused QKV is, for each of the G groups, its N/G query heads, its key head, its value head.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from megatron_patch.formats.lazy import LazyTensor, Rows, stack
from megatron_patch.llama.model_config import LlamaConfig


@dataclass(frozen=True)
class Entry:
    """One Megatron tensor and the Hugging Face tensors that it is made of; `{}` is the layer, counted over the model."""

    key: str
    hf: tuple[str, ...]
    per_layer: bool = True
    rule: str = "same"  # "same", "qkv", "gate_up"


_ATTENTION, _MLP = "model.layers.{}.self_attn.", "model.layers.{}.mlp."
EMBEDDING, OUTPUT_LAYER = "embedding.word_embeddings.weight", "output_layer.weight"

TABLE = (
    Entry(EMBEDDING, ("model.embed_tokens.weight",), per_layer=False),
    Entry("decoder.layers.self_attention.linear_qkv.layer_norm_weight", ("model.layers.{}.input_layernorm.weight",)),
    Entry(
        "decoder.layers.self_attention.linear_qkv.weight",
        (_ATTENTION + "q_proj.weight", _ATTENTION + "k_proj.weight", _ATTENTION + "v_proj.weight"),
        rule="qkv",
    ),
    Entry("decoder.layers.self_attention.linear_proj.weight", (_ATTENTION + "o_proj.weight",)),
    Entry("decoder.layers.mlp.linear_fc1.layer_norm_weight", ("model.layers.{}.post_attention_layernorm.weight",)),
    Entry("decoder.layers.mlp.linear_fc1.weight", (_MLP + "gate_proj.weight", _MLP + "up_proj.weight"), rule="gate_up"),
    Entry("decoder.layers.mlp.linear_fc2.weight", (_MLP + "down_proj.weight",)),
    Entry("decoder.final_layernorm.weight", ("model.norm.weight",), per_layer=False),
    Entry(OUTPUT_LAYER, ("lm_head.weight",), per_layer=False),
)
BY_KEY = {entry.key: entry for entry in TABLE}


@dataclass(frozen=True)
class Place:
    """One layer's part of an entry, or the whole of one without layers."""

    entry: Entry
    layer: int | None

    @property
    def hf_names(self) -> tuple[str, ...]:
        return tuple(name.format(self.layer) for name in self.entry.hf)

    def __str__(self) -> str:
        return self.entry.key if self.layer is None else f"{self.entry.key} (layer {self.layer})"


def places(config: LlamaConfig) -> Iterator[Place]:
    """Every tensor of the model in the order in which the model computes."""
    per_layer = [entry for entry in TABLE if entry.per_layer]
    yield Place(TABLE[0], None)
    for layer in range(config.num_layers):
        yield from (Place(entry, layer) for entry in per_layer)
    yield from (Place(entry, None) for entry in TABLE[1:] if not entry.per_layer)


def megatron_shape(config: LlamaConfig, key: str, extra_vocab_size: int = 0) -> tuple[int, ...]:
    """Full shape of one layer's `key`."""
    hidden, ffn, head = config.hidden_size, config.ffn_hidden_size, config.kv_channels
    vocabulary = config.vocab_size + extra_vocab_size
    return {
        EMBEDDING: (vocabulary, hidden),
        OUTPUT_LAYER: (vocabulary, hidden),
        "decoder.layers.self_attention.linear_qkv.weight": (
            (config.num_attention_heads + 2 * config.num_query_groups) * head,
            hidden,
        ),
        "decoder.layers.self_attention.linear_proj.weight": (hidden, config.num_attention_heads * head),
        "decoder.layers.mlp.linear_fc1.weight": (2 * ffn, hidden),
        "decoder.layers.mlp.linear_fc2.weight": (hidden, ffn),
    }.get(key, (hidden,))


def hf_shapes(config: LlamaConfig, place: Place, extra_vocab_size: int = 0) -> tuple[tuple[int, ...], ...]:
    """Shapes of the Hugging Face tensors of `place`, in the table's order."""
    shape = megatron_shape(config, place.entry.key, extra_vocab_size)
    if place.entry.rule == "qkv":
        query, group = config.num_attention_heads * config.kv_channels, config.num_query_groups * config.kv_channels
        return (query, shape[1]), (group, shape[1]), (group, shape[1])
    if place.entry.rule == "gate_up":
        return ((shape[0] // 2, shape[1]),) * 2
    return (shape,)


def join(config: LlamaConfig, rule: str, parts: Sequence[LazyTensor]) -> LazyTensor:
    """The Megatron tensor of the Hugging Face tensors `parts`."""
    if rule != "qkv":
        return stack(parts)
    groups, head = config.num_query_groups, config.kv_channels
    heights = (config.num_attention_heads // groups * head, head, head)
    return stack(
        [Rows(part, group * height, (group + 1) * height) for group in range(groups) for part, height in zip(parts, heights)]
    )


def split(config: LlamaConfig, rule: str, fused: LazyTensor) -> tuple[LazyTensor, ...]:
    """The Hugging Face tensors of a Megatron tensor; the inverse of `join`."""
    if rule == "same":
        return (fused,)
    if rule == "gate_up":
        half = fused.shape[0] // 2
        return Rows(fused, 0, half), Rows(fused, half, 2 * half)
    groups, head = config.num_query_groups, config.kv_channels
    queries = config.num_attention_heads // groups * head
    starts, ends = (0, queries, queries + head), (queries, queries + head, queries + 2 * head)
    period = queries + 2 * head
    return tuple(
        stack([Rows(fused, group * period + start, group * period + end) for group in range(groups)])
        for start, end in zip(starts, ends)
    )


def name_findings(config: LlamaConfig, found: Iterable[str]) -> tuple[list[str], list[str]]:
    """(missing, unknown) Hugging Face names, in order."""
    names = set(found)
    expected = {name for place in places(config) for name in place.hf_names}
    return sorted(expected - names, key=natural), sorted(names - expected, key=natural)


def natural(name: str) -> list[object]:
    """Sort key by which layer 10 follows layer 9."""
    # Of numbers without zeros in front the longer is the larger; int() refuses those of more than 4,300 digits.
    parts = re.split(r"0*([0-9]+)", name)
    return [(len(part), part) if place % 2 else part for place, part in enumerate(parts)]


def listed(names: Sequence[str], limit: int = 6) -> str:
    """The first of `names`, and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
