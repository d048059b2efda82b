"""Whether TP and PP divide a model, for training and conversion alike. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Callable

from megatron_patch.arguments.processes import Processes
from megatron_patch.llama.model_config import LlamaConfig
from megatron_patch.llama.vocabulary import splitting_finding

_MOST_NAMED = 64  # divisors above that are not named


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


def processes_finding(processes: Processes, tp: int, pp: int) -> str | None:
    """Why the processes cannot be parted into copies of the model; None where they can."""
    count = processes.world_size
    if count % (tp * pp) == 0:
        return None
    return (
        f"TP × PP = {tp * pp} must divide the {count} processes (nodes × processes per node = {processes.nodes} × "
        f"{processes.per_node}): write ones whose product is one of {_listed(_divisors(count))}, or use more GPUs."
    )


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, min(number, _MOST_NAMED) + 1) if number % n == 0]


def _those(sizes: list[int], fit: Callable[[int], bool]) -> list[int]:
    """The sizes that fit; all of them where none does, for then another argument is in the way."""
    return [size for size in sizes if fit(size)] or sizes


def _listed(sizes: list[int]) -> str:
    return ", ".join(map(str, sizes))
