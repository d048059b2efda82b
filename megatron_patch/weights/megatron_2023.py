"""A checkpoint of the original program, in its layouts from September 2023 to April 2024, as a source.

Every rank's file is one shard. Layers count from 0 in each pipeline stage. The rows of a fused QKV tensor have one of
two orders: "per KV head" is [its query heads; k; v] for each KV head, which is megatron-core's order and the only one
of MHA; "all q first" is [all of the rank's query heads; k, v of each KV head].

    converted, `mp_rank_XX[_YYY]/model_rng.pt` (`model_optim_rng.pt` since 2024-03-05), norms `input_layernorm`, …
        2023-09-04  query_key_value (MHA), or query and key_value per KV head [k; v] (GQA); dense_h_to_4h_1 is the
                    gate, _2 up; zero norm biases until 2023-09-15
        2023-10-10  GQA as before; a fused dense_h_to_4h, cut wrongly for TP > 1 until 2023-10-17: refused
        2023-10-17  MHA right: dense_h_to_4h is the rank's gate rows, then its up rows. GQA at TP > 1 holds all of
                    both in every rank until 2023-10-18: refused
        2023-10-18  GQA has a fused query_key_value too, all q first; no model of the original could run it
        2023-11-10  the same, per KV head; with several KV heads a rank the files differ from the former in the rows
                    alone, so `--gqa-layout` decides, and per KV head is the default
    converted for Transformer Engine (hf2te.py, MHA only), 2023-10-10 on: `self_attention.layernorm_qkv`,
        `layernorm_mlp`
    converted for megatron-core, 2024-04: flat names `decoder.layers.N.…`, per KV head; the second norm is
        `pre_mlp_layernorm` until 2024-04-22, `mlp.linear_fc1.layer_norm_weight` later; with PP each stage has both ends
    trained until 2023-10-10: as converted then
    trained since 2023-10-10: norms `input_norm`, `post_attention_norm`, `final_norm`; per KV head; gate and up fused

What is not read: optimizer state, random state, rotary frequencies, `lm_head` and `word_embeddings_for_head` (copies
of the output layer and the embedding), fp8 scales. `formats/vocabulary_2023.py` tells extra rows of the vocabulary.
Source: the converters and models of alibaba/Pai-Megatron-Patch at those dates.
"""

from __future__ import annotations

import torch

from megatron_patch.config import ALL_Q_FIRST, PER_KV_HEAD
from megatron_patch.errors import UserError
from megatron_patch.folders.layout import CheckpointLocation
from megatron_patch.formats.dtypes import of_torch
from megatron_patch.formats.lazy import Cast, LazyTensor, beside, stack
from megatron_patch.formats.vocabulary_2023 import VocabularyRows, extra_rows
from megatron_patch.llama.model_config import LlamaConfig
from megatron_patch.weights import rules_2023 as rules
from megatron_patch.weights.layout_2023 import Layout, tell_layout
from megatron_patch.weights.megatron_2023_config import config_2023
from megatron_patch.weights.ranks_2023 import Ranks, read_ranks
from megatron_patch.weights.table import (
    ATTENTION_NORM,
    DOWN,
    EMBEDDING,
    FINAL_NORM,
    GATE_UP,
    MLP_NORM,
    PROJECTION,
    QKV,
    Place,
    Source,
    megatron_shape,
    places,
)

# Ranks hold columns of these, beside each other, and the whole of the norms. Of all others they hold rows.
_BY_COLUMNS = {PROJECTION: "projection", DOWN: "down"}
_NORMS = {ATTENTION_NORM: "attention_norm", MLP_NORM: "mlp_norm"}


def open_2023(location: CheckpointLocation, fallback: LlamaConfig | None = None, gqa_layout: str = PER_KV_HEAD) -> Source:
    """Find every tensor of a checkpoint of 2023; the tensors' bytes are not read.

    Args:
        location: where its ranks' folders are.
        fallback: what a checkpoint without config.json does not record (epsilon, rotary base, position limit).
        gqa_layout: the order of QKV rows where no file tells it, `per-kv-head` or `all-q-first`.

    Raises:
        UserError: a rank's file is missing, damaged or names a class that is not allowed; a tensor is unknown, missing
            or of another shape; the layout is one that no model could run; or nothing tells the configuration.
    """
    ranks = read_ranks(location.folder)
    norm = ranks.shards(0, "attention_norm")[0]
    found = _vocabulary_rows(ranks, norm.dtype)
    config, notes = config_2023(location.root, ranks, found, fallback)
    layout = tell_layout(ranks, config, gqa_layout)
    # In the norms' dtype: both converters append extra rows of the vocabulary in fp32, which makes that whole tensor
    # fp32.
    tensors = {place: _in_dtype(_tensor(ranks, config, layout, place), norm.dtype, place) for place in places(config)}
    _check_shapes(ranks, config, found.rows, tensors)
    return Source(
        kind="megatron_2023",
        root=location.root,
        config=config,
        extra_vocab_size=extra_rows(found, config.vocab_size),
        dtype=of_torch(norm.dtype).name,
        lookup=lambda place: (tensors[place],),
        is_hf=False,
        notes=(*notes, *layout.notes),
    )


def _vocabulary_rows(ranks: Ranks, dtype: torch.dtype) -> VocabularyRows:
    """What the files say about the vocabulary; `dtype` is that of the other weights."""
    embedding = stack(ranks.vocabulary(is_embedding=True))
    is_wider = embedding.dtype.itemsize > dtype.itemsize
    return VocabularyRows(embedding.shape[0], ranks.width, is_wider, ranks.first.arguments)


def _in_dtype(tensor: LazyTensor, dtype: torch.dtype, place: Place) -> LazyTensor:
    return tensor if tensor.dtype == dtype else Cast(tensor, dtype, str(place))


def _tensor(ranks: Ranks, config: LlamaConfig, layout: Layout, place: Place) -> LazyTensor:
    """The Megatron tensor of `place`, put together from all ranks' shards."""
    key, layer = place.entry.key, place.layer
    if layer is None:
        return ranks.final_norm if key == FINAL_NORM else stack(ranks.vocabulary(is_embedding=key == EMBEDDING))
    if key in _NORMS:
        return ranks.shards(layer, _NORMS[key])[0]
    if key in _BY_COLUMNS:
        return beside(ranks.shards(layer, _BY_COLUMNS[key]))
    if key == QKV:
        return _qkv(ranks, config, layout, layer)
    assert key == GATE_UP, key
    if layout.gate_up == "separate":
        return rules.gate_up_separate(ranks.shards(layer, "gate"), ranks.shards(layer, "up"))
    return rules.gate_up_fused(ranks.shards(layer, "gate_up"))


def _qkv(ranks: Ranks, config: LlamaConfig, layout: Layout, layer: int) -> LazyTensor:
    per_group, head = config.num_attention_heads // config.num_query_groups, config.kv_channels
    if layout.qkv == "separate":
        return rules.qkv_separate(ranks.shards(layer, "query"), ranks.shards(layer, "key_value"), per_group, head)
    if layout.qkv == ALL_Q_FIRST:
        return rules.qkv_all_q_first(ranks.shards(layer, "qkv"), per_group, head)
    return rules.qkv_per_kv_head(ranks.shards(layer, "qkv"))


def _check_shapes(ranks: Ranks, config: LlamaConfig, rows: int, tensors: dict[Place, LazyTensor]) -> None:
    """Raise for a tensor of another shape than the configuration makes.

    The embedding has `rows`, which may be more than the vocabulary; the output layer must have as many.
    """
    for place, tensor in tensors.items():
        got, expected = tuple(tensor.shape), megatron_shape(config, place.entry.key)
        if place.is_vocabulary:
            expected = (max(rows, config.vocab_size), config.hidden_size)
        if got != expected:
            raise UserError(
                f"{ranks.folder}: {place} has shape {list(got)}, and config.json or the recorded arguments make it "
                f"{list(expected)}."
            )
