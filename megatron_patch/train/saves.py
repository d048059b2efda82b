"""When a run saves, and what it does when it may not or cannot."""

from __future__ import annotations

import megatron_patch.core.device  # noqa: F401  prepares megatron-core for this machine

import math
import time
from dataclasses import fields

import torch

from megatron_patch.checkpoint.refusals import SaveFailed
from megatron_patch.checkpoint.save import RunProgress, module, save_checkpoint
from megatron_patch.core import parallel
from megatron_patch.errors import RunStopped
from megatron_patch.processes import place
from megatron_patch.train.health import Health, is_loss_finite, last_checkpoint
from megatron_patch.train.log import RunLog
from megatron_patch.train.record import folder_bytes
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

    def __init__(self, state: TrainState, health: Health, log: RunLog) -> None:
        self._state, self._health, self._log = state, health, log
        self._is_owed = False

    def step_done(self, result: StepResult, lr: float, *, due: bool, ends: bool, is_best: bool) -> bool | None:
        """Save if it is time. Every rank calls it after each iteration, and gets the same answer.

        Args:
            lr: with which the iteration was done.
            due: whether it is time for one.
            ends: whether the run ends here.
            is_best: whether the weights are to be saved for their validation loss.

        Returns:
            Whether it saved; None if it did not try, which takes no time.

        Raises:
            RunStopped: the last checkpoint may not or cannot be written; or one could not, and `--fail-on-save-error`
                is true.
        """
        self._is_owed |= due
        if not (self._is_owed or is_best) or (result.found_inf and not (ends or is_best)):
            return None
        if result.found_inf and parallel.any_rank(not is_loss_finite(result)):
            if ends:
                self._health.stop(lr)
            return None
        self._refuse_weights_that_are_not_finite()
        only_best, self._is_owed = not self._is_owed, False
        return self._save(ends, only_best)

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

    def _save(self, ends: bool, only_best: bool) -> bool:
        state = self._state
        try:
            save(state, self._log, only_best)
        except SaveFailed as failure:
            sentence = f"iteration {state.iteration} could not be saved ({str(failure).rstrip('.')}). {last_checkpoint(state)}"
            if ends or state.config.options.fail_on_save_error:
                raise RunStopped(sentence) from None
            self._log.warn(f"{sentence} The next save is tried as usual.")
            return False
        return True


def _not_finite(state: TrainState) -> str:
    """The name of a weight of this rank that holds what is no finite number; empty if there is none."""
    if state.gathers is not None:
        state.gathers.finish()
    named = [(name, parameter.detach()) for name, parameter in module(state.model).named_parameters() if parameter.numel()]
    extremes = torch.stack([end.float() for _, weight in named for end in torch.aminmax(weight)])
    finite = torch.isfinite(extremes).view(-1, 2).all(1).tolist()
    return next((name for (name, _), is_finite in zip(named, finite) if not is_finite), "")


def save(state: TrainState, log: RunLog, only_best: bool = False) -> None:
    """Write a checkpoint, and a line about where it lies; `only_best` as in `save_checkpoint`.

    Raises:
        SaveFailed: it could not be written. Every rank raises it.
    """
    started = time.perf_counter()
    place.move("saving")
    log.make_room()  # for the bar of the first rank
    if state.gathers is not None:
        state.gathers.finish()
    progress = RunProgress(**{one.name: getattr(state, one.name) for one in fields(RunProgress)})
    parts = (state.config, state.model, state.optimizer, state.scheduler, progress, state.origin)
    folder = save_checkpoint(*parts, only_best=only_best)
    seconds = time.perf_counter() - started
    log.line(f"  saved checkpoint of iteration {state.iteration} in {seconds:.1f} s to {folder}")
    _warn_of_grace(state, log, seconds)
    if log.active:
        log.event("save", iteration=state.iteration, seconds=seconds, bytes=folder_bytes(folder), folder=str(folder))


def _warn_of_grace(state: TrainState, log: RunLog, seconds: float) -> None:
    """Say after a process's first save whether there is time for one after a signal."""
    grace = state.config.options.exit_grace_seconds
    if seconds > grace and not state.has_saved:
        log.line(
            f"  warning: a save takes longer than --exit-grace-seconds {grace}, so a signal would end the run without one: write "
            f"--exit-grace-seconds {2 * math.ceil(seconds)}, and have the platform wait as long."
        )
    state.has_saved = True
