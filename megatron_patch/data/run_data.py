"""A run's data and length, in one form for indexed data and JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from megatron_patch.data.samplers import BatchPlan


@dataclass(frozen=True)
class RunData:
    """Data sets and how they are dealt out.

    Attributes:
        train, valid: data sets; `valid` None skips evaluation.
        plan: how training samples are dealt out.
        valid_plan: the same for validation samples. With one pass (JSON data) each evaluation begins with the first batch, so
            losses compare. Without an end (indexed data) an evaluation goes on where the last one stopped, as in Megatron.
        train_iters: global batches of the whole run.
        eval_batches: global batches of one evaluation.
        eval_every, save_every: iterations between evaluations and between checkpoints; 0 for the end only.
    """

    train: Any
    valid: Any | None
    plan: BatchPlan
    valid_plan: BatchPlan | None
    train_iters: int
    eval_batches: int
    eval_every: int
    save_every: int
