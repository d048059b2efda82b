"""An evaluation that is due, unless a signal comes: then the run saves first, and owes it to its next start.

An evaluation may take longer than a platform waits after a signal. What it would cost is the training since the last
checkpoint. What is owed stands in the checkpoint, so the run that goes on has each loss of the one that is never asked
to stop.
"""

from __future__ import annotations

from megatron_patch.checkpoint.refusals import SaveFailed
from megatron_patch.data.batches import RunData
from megatron_patch.errors import RunStopped
from megatron_patch.processes import place
from megatron_patch.train.best import count_evaluation, why_over
from megatron_patch.train.evaluation import run_evaluation
from megatron_patch.train.log import RunLog
from megatron_patch.train.saves import save, unsaved
from megatron_patch.train.state import TrainState
from megatron_patch.train.stopping import StopRequest


def evaluate_or_owe(state: TrainState, data: RunData, log: RunLog, stop: StopRequest) -> bool:
    """Evaluate, and count it; whether the loss is the lowest so far. All ranks call it and get the same answer."""
    place.move("an evaluation")
    loss = run_evaluation(state, data, log, stop.signalled_anywhere)
    state.evaluations_owed = int(loss is None)
    return loss is not None and count_evaluation(state, loss)


def make_up(state: TrainState, data: RunData, log: RunLog, stop: StopRequest) -> bool:
    """Make the evaluation that the run before owes, if it does. All ranks call it, before the first step.

    Returns:
        Whether nothing is owed any more. If a signal came again, the checkpoint on the disk still says what is owed.
    """
    if not data.validation:
        state.evaluations_owed = 0
    if not state.evaluations_owed:
        return True
    log.line(f"  the evaluation of iteration {state.iteration}, before whose end a signal came, is made now")
    evaluate_or_owe(state, data, log, stop)
    if not state.evaluations_owed and (state.iteration >= data.train_iters or why_over(state)):
        _save_again(state, log)
    return not state.evaluations_owed


def _save_again(state: TrainState, log: RunLog) -> None:
    """Write the checkpoint again, with what is owed no more: no step follows, after which it would be written.

    Raises:
        RunStopped: it cannot be written.
    """
    try:
        save(state, log)
    except SaveFailed as failure:
        raise RunStopped(unsaved(state, state.iteration, str(failure))) from None
