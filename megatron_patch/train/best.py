"""The lowest validation loss of a run: what is noted of it, and when a run without a lower one ends."""

from __future__ import annotations

import math
import os
from pathlib import Path

from megatron_patch.data.batches import RunData
from megatron_patch.errors import UserError
from megatron_patch.folders.layout import iteration_folder
from megatron_patch.train.state import TrainState


def count_evaluation(state: TrainState, loss: float) -> bool:
    """Note the validation loss of the iteration. Whether it is the lowest so far; the same again is not, nor is NaN."""
    if math.isfinite(loss) and (state.best_loss is None or loss < state.best_loss):
        state.best_loss, state.best_iteration, state.evaluations_since_best = loss, state.iteration, 0
        return True
    state.evaluations_since_best += 1
    return False


def why_over(state: TrainState) -> str | None:
    """Why `--early-stopping-patience` ends the run now; None if it does not."""
    patience = state.config.options.early_stopping_patience
    if not patience or state.evaluations_since_best < patience:
        return None
    lowest = "there was none" if state.best_loss is None else f"{state.best_loss:.6E} at iteration {state.best_iteration}"
    return (
        f"the validation loss was not below its lowest, {lowest}, in the last {state.evaluations_since_best} evaluations "
        f"(--early-stopping-patience {patience})"
    )


def best_folder(state: TrainState) -> Path | None:
    """The checkpoint of the lowest validation loss; None where `--save-best` was not given, or it is not seen.

    What is asked for it is a line of advice, so a file server that does not answer ends no run.
    """
    folder = iteration_folder(state.config.checkpoint_folder, state.best_iteration)
    return folder if state.config.options.save_best and state.best_loss is not None and os.path.isdir(folder) else None


def said_of_best(state: TrainState) -> str | None:
    """A line about the lowest validation loss that a run goes on with; None where `--save-best` was not asked for."""
    if not state.config.options.save_best or state.best_loss is None:
        return None
    said = f"the lowest validation loss so far is {state.best_loss:.6E}, of iteration {state.best_iteration}"
    return said if best_folder(state) else f"{said}, whose checkpoint is not in this folder; the next lower one is kept"


def require_validation(state: TrainState, data: RunData) -> None:
    """Check that there is a validation loss where a flag goes by it.

    Raises:
        UserError: there is none.
    """
    options = state.config.options
    flags = {"--save-best": options.save_best, "--early-stopping-patience": options.early_stopping_patience > 0}
    wanting = [flag for flag, given in flags.items() if given]
    if wanting and not data.validation:
        raise UserError(
            f"{' and '.join(wanting)}: there is no validation loss to go by, since evaluation is skipped; name validation data "
            "of which something is learnt, or leave the flag out."
        )
