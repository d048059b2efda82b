"""An evaluation that is due, unless a signal comes: then the run saves first, and owes it to its next start.

An evaluation may take longer than a platform waits after a signal. What it would cost is the training since the last
checkpoint. What is owed stands in the checkpoint, so the run that goes on has each loss of the one that is never asked
to stop.
"""

from __future__ import annotations

from megatron_patch.checkpoint.local_output import keeps_folder
from megatron_patch.core import parallel
from megatron_patch.data.batches import RunData
from megatron_patch.folders.layout import iteration_folder
from megatron_patch.folders.tracker import BEST_TRACKER, write_tracker
from megatron_patch.processes import place
from megatron_patch.train.best import count_evaluation
from megatron_patch.train.evaluation import run_evaluation
from megatron_patch.train.log import RunLog
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
    is_best = evaluate_or_owe(state, data, log, stop)
    folder, root = iteration_folder(state.config.checkpoint_folder, state.iteration), state.config.checkpoint_folder
    if is_best and state.config.options.save_best and keeps_folder(state.config) and folder.is_dir():
        # Otherwise the next save names it. There may be none, and its own checkpoint has been written.
        write_tracker(root, str(state.iteration), BEST_TRACKER)
    parallel.barrier()
    return not state.evaluations_owed
