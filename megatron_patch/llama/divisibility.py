"""Whether a layout divides a model and its rows: for training, plans, conversion and use. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Callable

from megatron_patch.llama.model_config import LlamaConfig
from megatron_patch.llama.vocabulary import splitting_finding

_MOST_NAMED = 64  # divisors above that are not named
_FP8_STEP = 16  # FP8 numbers that tensor cores take at a time


def layout_findings(
    model: LlamaConfig, tp: int, pp: int, rows: int | None = None, processes: int | None = None
) -> list[tuple[str, str]]:
    """What is wrong with TP and PP for this model: (argument's name, what is allowed and what to write), one each at
    most.

    Args:
        rows: rows of embedding and output layer, if they are split as well.
        processes: processes of the run, which TP × PP must divide. The sentence then names only sizes that do.
    """
    found = []
    counts = (
        (model.num_attention_heads, "attention heads"),
        (model.num_query_groups, "KV groups"),
        (model.ffn_hidden_size, "rows of the feed-forward layer"),
    )
    common = math.gcd(*(number for number, _ in counts))
    stages = pp if model.num_layers % pp == 0 else 1
    sizes = _those(_divisors(common), lambda size: rows is None or splitting_finding(rows, size) is None)
    advice = _listed(_those(sizes, lambda size: processes is None or processes % (size * stages) == 0))
    undivided = next(((count, what) for count, what in counts if count % tp), None)
    if undivided:
        count, what = undivided
        found.append(("TP", f"it must divide the {count} {what}: write one of {advice}."))
    elif rows is not None and splitting_finding(rows, tp):
        found.append(("TP", f"a vocabulary of {rows} rows is too small for it: write one of {advice}."))
    if model.num_layers % pp:
        degree = 1 if common % tp else tp
        depths = _those(_divisors(model.num_layers), lambda size: processes is None or processes % (size * degree) == 0)
        found.append(("PP", f"it must divide the {model.num_layers} layers: write one of {_listed(depths)}."))
    return found


def split_finding(length: int, tp: int) -> str | None:
    """Why sequence parallelism cannot split rows of `length` tokens over `tp` GPUs; None where it can."""
    if length % tp == 0:
        return None
    return f"with SP true it must be a multiple of TP = {tp}: write {multiple_of(tp, length)}."


def multiple_of(step: int, most: int) -> int:
    """The largest multiple of `step` up to `most`; `step` itself where there is none."""
    return max(step, most - most % step)


def fp8_width_finding(model: LlamaConfig, tp: int) -> str | None:
    """Why the model's products cannot be in FP8 at this TP; None where they can."""
    heads = (model.num_attention_heads * model.kv_channels, model.num_query_groups * model.kv_channels)
    for width in (model.hidden_size, model.ffn_hidden_size, *heads):
        if width % (_FP8_STEP * tp):
            return (
                f"its products need widths that are multiples of {_FP8_STEP} on each GPU, and {width} ÷ TP {tp} is none: "
                "write bf16."
            )
    return None


def fp8_layers_finding(model: LlamaConfig, kept: int) -> str | None:
    """Why `kept` layers at either end cannot stay in bf16; None where one between them is left."""
    if 2 * kept < model.num_layers:
        return None
    most = (model.num_layers - 1) // 2
    return f"it leaves none of the model's {model.num_layers} layers in FP8: write {most} or less, or PR bf16."


def fp8_tokens_finding(length: int, micro: int, split: int) -> str | None:
    """FP8 products sum over a micro-batch's tokens on a GPU, `length` × `micro` ÷ `split`, in steps of 16."""
    if length * micro % (_FP8_STEP * split) == 0:
        return None
    nearest = multiple_of(_FP8_STEP * split // math.gcd(_FP8_STEP, micro), length)
    return f"with PR fp8 a micro-batch must have a multiple of {_FP8_STEP} tokens on each GPU: write {nearest}."


def divisors_of(number: int) -> str:
    """Those up to 64, for a sentence."""
    return _listed(_divisors(number))


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, min(number, _MOST_NAMED) + 1) if number % n == 0]


def _those(sizes: list[int], fit: Callable[[int], bool]) -> list[int]:
    """The sizes that fit; all of them where none does, for then another argument is in the way."""
    return [size for size in sizes if fit(size)] or sizes


def _listed(sizes: list[int]) -> str:
    return ", ".join(map(str, sizes))
