"""When a run saves, and what it does when it may not or cannot."""

from __future__ import annotations

import megatron_patch.core.device  # noqa: F401  prepares megatron-core for this machine

import time

import torch

from megatron_patch.checkpoint.refusals import SaveFailed
from megatron_patch.checkpoint.save import RunProgress, module, save_checkpoint
from megatron_patch.core import parallel
from megatron_patch.data.batches import RunData
from megatron_patch.errors import RunStopped
from megatron_patch.train.health import Health, is_loss_finite, last_checkpoint
from megatron_patch.train.log import RunLog
from megatron_patch.train.state import StepResult, TrainState


def is_due(iteration: int, every: int, last: int) -> bool:
    """Whether something that is done every `every` iterations and after the last one is due now."""
    return (every > 0 and iteration % every == 0) or iteration == last


class Saves:
    """The checkpoints of a run.

    None is written after an iteration that was not finite: it is written after the next finite one, so that NaN never
    takes the place of good weights. At the run's end an overflow of fp16's loss scale is no reason, since its loss is
    finite and it changed no weight.
    """

    def __init__(self, state: TrainState, data: RunData, health: Health, log: RunLog) -> None:
        self._state, self._data, self._health, self._log = state, data, health, log
        self._is_owed = False

    def step_done(self, result: StepResult, lr: float, stopping: bool) -> bool:
        """Save if it is time. Every rank calls it after each iteration, and gets the same answer.

        Args:
            lr: with which the iteration was done.
            stopping: whether the run ends here because it was asked to.

        Returns:
            Whether it saved, or tried to, which takes time.

        Raises:
            RunStopped: the last checkpoint may not or cannot be written; or one could not, and `--fail-on-save-error`
                is true.
        """
        state, data = self._state, self._data
        ends = stopping or state.iteration == data.train_iters
        self._is_owed |= stopping or is_due(state.iteration, data.save_every, data.train_iters)
        if not self._is_owed:
            return False
        if result.found_inf and not ends:
            return False
        if result.found_inf and parallel.any_rank(not is_loss_finite(result)):
            self._health.stop(lr)
        self._is_owed = False
        self._refuse_weights_that_are_not_finite()
        self._save(ends)
        return True

    def _refuse_weights_that_are_not_finite(self) -> None:
        """Look through the weights: those of tokens that no batch had are in no loss.

        Raises:
            RunStopped: one is not finite on any rank. No step mends that.
        """
        state = self._state
        found = parallel.from_all_ranks(_not_finite(state))
        if any(found):
            raise RunStopped(
                f"iteration {state.iteration} is not saved: {next(filter(None, found))} holds a NaN or an infinity, which no "
                f"further step mends. {last_checkpoint(state)}"
            )

    def _save(self, ends: bool) -> None:
        state = self._state
        try:
            save(state, self._log)
        except SaveFailed as failure:
            sentence = f"iteration {state.iteration} could not be saved ({str(failure).rstrip('.')}). {last_checkpoint(state)}"
            if ends or state.config.options.fail_on_save_error:
                raise RunStopped(sentence) from None
            self._log.warn(f"{sentence} The next save is tried as usual.")


def _not_finite(state: TrainState) -> str:
    """The name of a weight of this rank that holds what is no finite number; empty if there is none."""
    if state.gathers is not None:
        state.gathers.finish()
    named = [(name, parameter.detach()) for name, parameter in module(state.model).named_parameters() if parameter.numel()]
    extremes = torch.stack([end.float() for _, weight in named for end in torch.aminmax(weight)])
    finite = torch.isfinite(extremes).view(-1, 2).all(1).tolist()
    return next((name for (name, _), is_finite in zip(named, finite) if not is_finite), "")


def save(state: TrainState, log: RunLog) -> None:
    """Write a checkpoint, and a line about where it lies.

    Raises:
        SaveFailed: it could not be written. Every rank raises it.
    """
    started = time.perf_counter()
    if state.gathers is not None:
        state.gathers.finish()
    progress = RunProgress(state.iteration, state.consumed_samples, state.skipped_iterations, state.nan_iterations)
    folder = save_checkpoint(state.config, state.model, state.optimizer, state.scheduler, progress, state.origin)
    log.line(f"  saved checkpoint of iteration {state.iteration} in {time.perf_counter() - started:.1f} s to {folder}")
