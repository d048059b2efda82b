"""Telling the layouts of the original's checkpoints apart: the order of a fused tensor's rows.

What cannot be right is refused. Source of the rules: the converters and models of alibaba/Pai-Megatron-Patch, at the
dates that the messages name.
"""

from __future__ import annotations

from dataclasses import dataclass

from megatron_patch.config import ALL_Q_FIRST
from megatron_patch.errors import UserError
from megatron_patch.formats.names_2023 import family
from megatron_patch.llama.model_config import LlamaConfig
from megatron_patch.weights.ranks_2023 import Ranks

_CONVERT_AGAIN = (
    "convert the Hugging Face folder that it was made from again, with this project's model_convertor.sh and mg2hf false"
)


@dataclass(frozen=True)
class Layout:
    """In which order the rows of a rank's attention and feed-forward weights are."""

    qkv: str  # "separate": two tensors, query and key_value; else one, "per-kv-head" or "all-q-first"
    gate_up: str  # "separate": two tensors; "fused": the rank's gate rows, then its up rows
    notes: tuple[str, ...] = ()


def tell_layout(ranks: Ranks, config: LlamaConfig, gqa_layout: str) -> Layout:
    """The layout of `ranks`.

    Args:
        ranks: every rank's file.
        config: the model, for its numbers of heads.
        gqa_layout: the order of QKV rows where no file tells it, `per-kv-head` or `all-q-first`.

    Raises:
        UserError: the checkpoint cannot be right, or `gqa_layout` contradicts it.
    """
    separate = ranks.has(0, "query")
    gate_up = "separate" if ranks.has(0, "gate") else "fused"
    if gate_up == "fused":
        _refuse_wrong_gate_up(ranks, separate)
    if 1 < config.num_query_groups < config.num_attention_heads and config.num_query_groups % ranks.width:
        raise UserError(
            f"{ranks.folder} has {ranks.width} tensor-parallel ranks, which cannot share {config.num_query_groups} KV heads; "
            "put the model's own config.json beside it."
        )
    order, notes = _qkv_order(ranks, config, gqa_layout, separate)
    return Layout(order, gate_up, notes)


def _qkv_order(ranks: Ranks, config: LlamaConfig, wanted: str, separate: bool) -> tuple[str, tuple[str, ...]]:
    """(`Layout.qkv`, notes); `wanted` is --gqa-layout, `separate` whether query and key_value are two tensors."""
    certain = "separate" if separate else "per-kv-head"
    is_grouped = config.num_query_groups < config.num_attention_heads
    if not is_grouped or config.num_query_groups <= ranks.width:
        note = f"--gqa-layout {wanted} changes nothing: {ranks.folder} is MHA, or has one KV head a rank, which leaves one order."
        return certain, (note,) if wanted == ALL_Q_FIRST else ()
    known = _known_by(ranks, separate)
    if known and wanted == ALL_Q_FIRST:
        raise UserError(
            f"{ranks.folder}: --gqa-layout all-q-first is for what the original converted from 2023-10-18 to 2023-11-09, "
            f"and this checkpoint, {known}, has its rows per KV head; leave the flag out."
        )
    if known:
        return certain, ()
    if wanted == ALL_Q_FIRST:
        return ALL_Q_FIRST, (f"QKV rows of {ranks.folder} are read as all of a rank's q, then k and v of each KV head.",)
    return certain, (
        f"QKV rows of {ranks.folder} are read per KV head, as the original converted from 2023-11-10 on; nothing in it "
        "tells. Was it converted from 2023-10-18 to 2023-11-09? Then add --gqa-layout all-q-first.",
    )


def _known_by(ranks: Ranks, separate: bool) -> str:
    """What shows that the rows are per KV head, as a phrase; empty where nothing does."""
    kind = family(ranks.first.names)
    if separate:
        return "with query and key_value apart"
    if kind != "converted":
        return {
            "trained": "which a training run saved (input_norm)",
            "transformer_engine": "in Transformer Engine's names",
            "megatron_core": "in megatron-core's names",
        }[kind]
    return "a model_optim_rng.pt, which converters write since 2024-03-05" if "optim" in ranks.first.path.name else ""


def _refuse_wrong_gate_up(ranks: Ranks, separate: bool) -> None:
    """Refuse what the converters of 2023-10-10 to 18 wrote for several tensor-parallel ranks.

    They fused gate and up before they split them. For TP 2 the first rank then holds the gate alone (2023-10-10), or
    every rank holds everything (2023-10-17 and 18). The models of the time computed nonsense with the former, and did
    not load the latter.
    """
    if ranks.width == 1:
        return
    rows, columns = ranks.shards(0, "gate_up")[0].shape[0], ranks.shards(0, "down")[0].shape[1]
    if rows == 2 * columns * ranks.width:
        what = "every rank holds the whole of [gate; up]"
    elif separate or _is_first_of_october(ranks):
        what = "each rank holds a piece of [gate; up] instead of its rows of both"
    else:
        return
    raise UserError(
        f"{ranks.folder} cannot be right: the original's converter of 2023-10-10 to 18 wrote it for TP {ranks.width}, where "
        f"it split the feed-forward weights wrongly ({what}), and no model can run with them; {_CONVERT_AGAIN}."
    )


def _is_first_of_october(ranks: Ranks) -> bool:
    """Whether the converter of 2023-10-10 wrote this.

    The order in the file tells: later converters put the fused `dense_h_to_4h` behind a layer's other weights.
    """
    names = ranks.first.names
    up, down = "mlp.dense_h_to_4h.weight", "mlp.dense_4h_to_h.weight"
    if not ranks.first.has_lm_head or family(names) != "converted" or up not in names or down not in names:
        return False
    return names.index(up) < names.index(down)
