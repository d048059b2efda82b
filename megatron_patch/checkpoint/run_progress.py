"""How far a run has come, as its checkpoints hold it. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RunProgress:
    """How far a run has come.

    Attributes:
        iteration: iterations that are done; the last one's checkpoint has this number.
        consumed_samples: training samples in their batches.
        skipped_iterations: of these iterations, those whose gradients overflowed in fp16.
        nan_iterations: those whose gradients were not finite in another precision.
        best_loss: the lowest validation loss so far; None before the first evaluation.
        best_iteration: when that was.
        evaluations_since_best: evaluations since then, none of which was lower.
        evaluations_owed: 1 if a signal came before the end of the evaluation that was due after the last iteration.
    """

    iteration: int
    consumed_samples: int
    skipped_iterations: int
    nan_iterations: int
    best_loss: float | None = None
    best_iteration: int = 0
    evaluations_since_best: int = 0
    evaluations_owed: int = 0
