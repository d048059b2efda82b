"""The Hugging Face ↔ Megatron table of LLaMA's weights, and a checkpoint's weights by it.

The table is data that both directions use. Megatron keys are those of megatron-core's GPTModel with Transformer
Engine's names for the norms. torch_dist stacks the layers' tensors of one key along a first axis; here each layer has
its own.

Shapes: V vocabulary with extra rows, H hidden, F ffn, N heads, G KV heads, D head size. Fused QKV is, for each of the G
KV heads, its N/G query heads, its key head, its value head: [(N + 2G)·D, H]. Fused gate and up is all rows of the gate,
then all rows of up: [2F, H].
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_patch.formats.dtypes import of_torch
from megatron_patch.formats.lazy import LazyTensor, Rows, stack
from megatron_patch.llama.model_config import LlamaConfig


@dataclass(frozen=True)
class Entry:
    """One Megatron tensor, and the Hugging Face tensors that it is made of; `{}` is the layer, of all of the model."""

    key: str
    hf: tuple[str, ...]
    per_layer: bool = True
    rule: str = "same"  # "same", "qkv", "gate_up"


EMBEDDING, OUTPUT_LAYER = "embedding.word_embeddings.weight", "output_layer.weight"
QKV, PROJECTION = "decoder.layers.self_attention.linear_qkv.weight", "decoder.layers.self_attention.linear_proj.weight"
GATE_UP, DOWN = "decoder.layers.mlp.linear_fc1.weight", "decoder.layers.mlp.linear_fc2.weight"
ATTENTION_NORM = "decoder.layers.self_attention.linear_qkv.layer_norm_weight"
MLP_NORM = "decoder.layers.mlp.linear_fc1.layer_norm_weight"
FINAL_NORM = "decoder.final_layernorm.weight"

_ATTENTION, _MLP = "model.layers.{}.self_attn.", "model.layers.{}.mlp."
TABLE = (
    Entry(EMBEDDING, ("model.embed_tokens.weight",), per_layer=False),
    Entry(ATTENTION_NORM, ("model.layers.{}.input_layernorm.weight",)),
    Entry(QKV, (_ATTENTION + "q_proj.weight", _ATTENTION + "k_proj.weight", _ATTENTION + "v_proj.weight"), rule="qkv"),
    Entry(PROJECTION, (_ATTENTION + "o_proj.weight",)),
    Entry(MLP_NORM, ("model.layers.{}.post_attention_layernorm.weight",)),
    Entry(GATE_UP, (_MLP + "gate_proj.weight", _MLP + "up_proj.weight"), rule="gate_up"),
    Entry(DOWN, (_MLP + "down_proj.weight",)),
    Entry(FINAL_NORM, ("model.norm.weight",), per_layer=False),
    Entry(OUTPUT_LAYER, ("lm_head.weight",), per_layer=False),
)
BY_KEY = {entry.key: entry for entry in TABLE}


@dataclass(frozen=True)
class Place:
    """One layer's tensor of an entry; without a layer, the entry's only one."""

    entry: Entry
    layer: int | None

    @property
    def hf_names(self) -> tuple[str, ...]:
        """The Hugging Face names, in the table's order."""
        return tuple(name.format(self.layer) for name in self.entry.hf)

    @property
    def is_vocabulary(self) -> bool:
        """Whether its rows are tokens, so that extra and padding rows may follow config.json's."""
        return self.entry.key in (EMBEDDING, OUTPUT_LAYER)

    def __str__(self) -> str:
        return self.entry.key if self.layer is None else f"{self.entry.key} (layer {self.layer})"


def places(config: LlamaConfig) -> Iterator[Place]:
    """Every tensor of the model, in the order in which the model computes."""
    per_layer = [entry for entry in TABLE if entry.per_layer]
    yield Place(TABLE[0], None)
    for layer in range(config.num_layers):
        yield from (Place(entry, layer) for entry in per_layer)
    yield from (Place(entry, None) for entry in TABLE[1:] if not entry.per_layer)


@dataclass(frozen=True)
class Source:
    """A checkpoint's weights. Tensors are read when asked for, and nothing is kept.

    Attributes:
        kind: "hf", "meta", "native" or "megatron_2023".
        root: the folder with config.json and the tokenizer's files.
        extra_vocab_size: rows of embedding and output layer beyond `config.vocab_size` that are tokens.
        dtype: of the weights: bfloat16, float16 or float32.
        lookup: gives the tensors of a place: the Hugging Face ones, in the table's order, or the one Megatron tensor.
        is_hf: which of the two `lookup` gives.
        notes: what the user should know, one sentence each.
        adapter: the folder of the adapter that is merged in; None: none is.
    """

    kind: str
    root: Path
    config: LlamaConfig
    extra_vocab_size: int
    dtype: str
    lookup: Callable[[Place], tuple[LazyTensor, ...]]
    is_hf: bool
    notes: tuple[str, ...] = ()
    adapter: Path | None = None

    def megatron(self, place: Place) -> LazyTensor:
        """The Megatron tensor of `place`, of the shape that `megatron_shape` tells."""
        found = self.lookup(place)
        return join(self.config, place.entry.rule, found) if self.is_hf else found[0]

    def hf(self, place: Place) -> tuple[LazyTensor, ...]:
        """The Hugging Face tensors of `place`, in the table's order, of the shapes that `hf_shapes` tells."""
        found = self.lookup(place)
        return found if self.is_hf else split(self.config, place.entry.rule, found[0])


def hf_source(kind: str, folder: Path, config: LlamaConfig, tensors: Mapping[str, LazyTensor], notes: tuple[str, ...]) -> Source:
    """The source of a folder whose `tensors` have Hugging Face names, all of them; its dtype is that of most."""
    most, _ = Counter(tensor.dtype for tensor in tensors.values()).most_common(1)[0]
    return Source(
        kind=kind,
        root=folder,
        config=config,
        extra_vocab_size=0,
        dtype=of_torch(most).name,
        lookup=lambda place: tuple(tensors[name] for name in place.hf_names),
        is_hf=True,
        notes=notes,
    )


def megatron_shape(config: LlamaConfig, key: str, extra_vocab_size: int = 0) -> tuple[int, ...]:
    """The whole shape of one layer's `key`, rows first."""
    hidden, ffn, head = config.hidden_size, config.ffn_hidden_size, config.kv_channels
    vocabulary = config.vocab_size + extra_vocab_size
    return {
        EMBEDDING: (vocabulary, hidden),
        OUTPUT_LAYER: (vocabulary, hidden),
        QKV: ((config.num_attention_heads + 2 * config.num_query_groups) * head, hidden),
        PROJECTION: (hidden, config.num_attention_heads * head),
        GATE_UP: (2 * ffn, hidden),
        DOWN: (hidden, ffn),
    }.get(key, (hidden,))


def hf_shapes(config: LlamaConfig, place: Place, extra_vocab_size: int = 0) -> tuple[tuple[int, ...], ...]:
    """The shapes of the Hugging Face tensors of `place`, in the table's order."""
    shape = megatron_shape(config, place.entry.key, extra_vocab_size)
    if place.entry.rule == "qkv":
        query, group = config.num_attention_heads * config.kv_channels, config.num_query_groups * config.kv_channels
        return (query, shape[1]), (group, shape[1]), (group, shape[1])
    if place.entry.rule == "gate_up":
        return ((shape[0] // 2, shape[1]),) * 2
    return (shape,)


def join(config: LlamaConfig, rule: str, parts: Sequence[LazyTensor]) -> LazyTensor:
    """The Megatron tensor that the Hugging Face tensors `parts` make.

    Args:
        rule: the entry's.
        parts: q [N·D, H], k and v [G·D, H]; or gate and up [F, H] each; or one tensor, which stays as it is.
    """
    if rule != "qkv":
        return stack(parts)
    groups, head = config.num_query_groups, config.kv_channels
    heights = (config.num_attention_heads // groups * head, head, head)
    return stack(
        [Rows(part, group * height, (group + 1) * height) for group in range(groups) for part, height in zip(parts, heights)]
    )


def split(config: LlamaConfig, rule: str, fused: LazyTensor) -> tuple[LazyTensor, ...]:
    """The Hugging Face tensors of a Megatron tensor: the inverse of `join`."""
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
    """(missing, unknown) Hugging Face names among `found`, each sorted as `natural` does."""
    names = set(found)
    expected = {name for place in places(config) for name in place.hf_names}
    return sorted(expected - names, key=natural), sorted(names - expected, key=natural)


def natural(name: str) -> list[object]:
    """Sort key by which layer 10 follows layer 9."""
    # Of numbers without zeros in front the longer is the larger. int() is not asked: it refuses more than 4,300 digits.
    parts = re.split(r"0*([0-9]+)", name)
    return [(len(part), part) if place % 2 else part for place, part in enumerate(parts)]


def listed(names: Sequence[str], limit: int = 6) -> str:
    """The first `limit` of `names`, and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
