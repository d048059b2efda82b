"""A whole small life of the distributed optimizer in one process: steps, a save, a resume, more steps."""

from __future__ import annotations

from pathlib import Path


def train_save_and_resume(folder: str) -> None:
    """Raises where the resumed losses differ from the uninterrupted ones, or anything on the way fails."""
    from megatron_patch.checkpoint.run_state import Progress, resume, save_checkpoint
    from megatron_patch.core import parallel
    from megatron_patch.train.log import RunLog
    from megatron_patch.train.setup import build_state
    from megatron_patch.train.step import train_step
    from tests.tiny import be_alone, tiny_batches, tiny_config

    be_alone()
    config = tiny_config(output_path=folder)
    layout = parallel.start(config)

    def fresh():
        return build_state(config, layout, RunLog(config, active=False), 4)

    state = fresh()
    losses = []
    for step in range(4):
        losses.append(train_step(state, tiny_batches(step, 2)).loss)
        state.scheduler.step(increment=1)
        if step == 1:
            saved = save_checkpoint(config, state.model, state.optimizer, state.scheduler, Progress(2, 4, 0, 0))
    again = fresh()
    resume(Path(saved), again.model, again.optimizer, again.scheduler)
    for step in (2, 3):
        loss = train_step(again, tiny_batches(step, 2)).loss
        again.scheduler.step(increment=1)
        if loss != losses[step]:
            raise RuntimeError(f"Error: the loss of step {step} is {loss} after resuming, {losses[step]} without a stop")
    parallel.stop()
