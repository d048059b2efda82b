"""Whether TP and PP divide a model, for training and conversion alike. Imports no torch."""

from __future__ import annotations

import math

from megatron_patch.llama.model_config import LlamaConfig
from megatron_patch.llama.vocabulary import splitting_finding

_MOST_NAMED = 64  # divisors above that are not named


def layout_findings(model: LlamaConfig, tp: int, pp: int, rows: int | None = None) -> list[tuple[str, str]]:
    """What in TP and PP does not go with the model: (argument's name, what is allowed and what to write), one an argument.

    `rows`: of embedding and output layer, where they are split too.
    """
    found = []
    counts = (
        (model.num_attention_heads, "attention heads"),
        (model.num_query_groups, "KV groups"),
        (model.ffn_hidden_size, "rows of the feed-forward layer"),
    )
    undivided = next(((count, what) for count, what in counts if count % tp), None)
    if undivided:
        count, what = undivided
        found.append(("TP", f"it must divide the {count} {what}: write one of {_divisors(math.gcd(*(n for n, _ in counts)))}."))
    elif rows is not None and (finding := splitting_finding(rows, tp)):
        found.append(("TP", finding))
    if model.num_layers % pp:
        found.append(("PP", f"it must divide the {model.num_layers} layers: write one of {_divisors(model.num_layers)}."))
    return found


def _divisors(number: int) -> str:
    return ", ".join(str(n) for n in range(1, min(number, _MOST_NAMED) + 1) if number % n == 0)
