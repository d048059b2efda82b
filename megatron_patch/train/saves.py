"""When a run saves, and what it does when it may not or cannot."""

from __future__ import annotations

import megatron_patch.core.device as device

import math
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from megatron_patch.checkpoint.background import BackgroundSaves, Outcome
from megatron_patch.checkpoint.contents import module
from megatron_patch.checkpoint.refusals import SaveFailed
from megatron_patch.checkpoint.run_progress import RunProgress
from megatron_patch.checkpoint.save import save_checkpoint
from megatron_patch.config import Options
from megatron_patch.core import parallel
from megatron_patch.errors import RunStopped, refusal
from megatron_patch.folders.tracker import BEST_TRACKER
from megatron_patch.processes import place
from megatron_patch.train.health import Health, is_loss_finite, last_checkpoint
from megatron_patch.train.log import RunLog
from megatron_patch.train.record import folder_bytes
from megatron_patch.train.state import StepResult, TrainState


def is_due(iteration: int, every: int, last: int) -> bool:
    """Whether something that is done every `every` iterations and after the last one is due now."""
    return (every > 0 and iteration % every == 0) or iteration == last


def unsaved(state: TrainState, iteration: int, why: str) -> str:
    """What is said of a checkpoint that could not be written."""
    return f"iteration {iteration} could not be saved ({why.rstrip('.')}). {last_checkpoint(state)}"


class Saves:
    """The checkpoints of a run.

    None is written after an iteration that was not finite: it is written after the next finite one, so that NaN never
    takes the place of good weights. At the run's end an overflow of fp16's loss scale is no reason, since its loss is
    finite and it changed no weight.
    """

    def __init__(self, state: TrainState, health: Health, log: RunLog) -> None:
        self._state, self._health, self._log = state, health, log
        self._is_owed = False
        self._background = BackgroundSaves(state.config) if _is_beside(state.config.options) else None
        state.background = self._background

    def step_done(self, result: StepResult, lr: float, seconds: float, *, due: bool, ends: bool, is_best: bool) -> bool | None:
        """Save if it is time, and go on with a save that is under way.

        Every rank calls it after each iteration, and gets the same answer.

        Args:
            lr: with which the iteration was done.
            seconds: that it took.
            due: whether it is time for one.
            ends: whether the run ends here.
            is_best: whether the weights are to be saved for their validation loss.

        Returns:
            Whether it saved, or began to; None if it did not try, which takes no time.

        Raises:
            RunStopped: the last checkpoint may not or cannot be written; or one could not, and `--fail-on-save-error`
                is true.
        """
        self._state.step_seconds = seconds
        if self._background is not None and self._background.is_saving and (outcome := self._background.poll()):
            self._tell(outcome, ends=False)
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

    def prepare(self) -> None:
        """Get ready to save beside the training, if that is asked for. Every rank calls it, once, after a few steps."""
        if self._background is not None:
            self._without_background(self._background.prepare(*self._parts))

    @property
    def _parts(self) -> tuple[Any, Any, Any, RunProgress]:
        state = self._state
        progress = RunProgress(**{one.name: getattr(state, one.name) for one in fields(RunProgress)})
        return state.model, state.optimizer, state.scheduler, progress

    def _save(self, ends: bool, only_best: bool) -> bool:
        self.finish(ends=False)  # a save waits for the one before it
        try:
            if self._background is None or not self._began(self._background, only_best):
                save(self._state, self._log, only_best)
        except SaveFailed as failure:
            return self._failed(str(failure), self._state.iteration, ends)
        return self.finish(ends=True) if ends else True

    def _began(self, background: BackgroundSaves, only_best: bool) -> bool:
        """Whether a save beside the training has begun."""
        place.move("saving")
        if self._state.gathers is not None:
            self._state.gathers.finish()
        return self._without_background(background.begin(*self._parts, self._state.origin, only_best=only_best))

    def _without_background(self, problem: str) -> bool:
        """Save while the training waits from now on, if there is a problem; returns whether there is none."""
        if problem:
            self._log.warn(problem)
            assert self._background is not None
            self._background.close()
            self._background = self._state.background = None
        return not problem

    def finish(self, ends: bool) -> bool:
        """Wait for the save that is under way, if there is one. All ranks call it.

        Args:
            ends: whether the run ends if it could not be written.

        Returns:
            Whether nothing failed.
        """
        if self._background is None or not self._background.is_saving:
            return True
        place.move("saving")
        return self._tell(self._background.wait(), ends)

    def _tell(self, outcome: Outcome, ends: bool) -> bool:
        """Say what became of a save beside the training; returns whether it was written."""
        iteration = outcome.progress.iteration
        if outcome.refusal:
            return self._failed(outcome.refusal, iteration, ends)
        seconds, folder = outcome.seconds, outcome.folder
        self._log.line(f"  saved checkpoint of iteration {iteration} in {seconds:.1f} s beside the training to {folder}")
        _tell_saved(self._state, self._log, outcome.progress, folder, seconds, outcome.writing_seconds)
        return True

    def _failed(self, why: str, iteration: int, ends: bool) -> bool:
        sentence = unsaved(self._state, iteration, why)
        asked = self._state.config.options.fail_on_save_error
        if ends or asked:
            raise RunStopped(sentence, may_pass=not asked) from None
        self._log.warn(f"{sentence} The next save is tried as usual.")
        return False

    def close(self) -> None:
        """Wait for a save that is under way, and let go of what it took. All ranks call it, at the run's end."""
        self.finish(ends=True)
        if self._background is not None:
            self._background.close()
            self._background = self._state.background = None


def _is_beside(options: Options) -> bool:
    """Whether checkpoints are written beside the training, by `--async-save`; not onto disks of the nodes' own."""
    return not options.local_output and (options.async_save == "true" or (options.async_save == "auto" and device.HAS_CUDA))


def _not_finite(state: TrainState) -> str:
    """The name of a weight of this rank that holds what is no finite number; empty if there is none."""
    if state.gathers is not None:
        state.gathers.finish()
    named = [(name, parameter.detach()) for name, parameter in module(state.model).named_parameters() if parameter.numel()]
    extremes = torch.stack([end.float() for _, weight in named for end in torch.aminmax(weight)])
    finite = torch.isfinite(extremes).view(-1, 2).all(1).tolist()
    return next((name for (name, _), is_finite in zip(named, finite) if not is_finite), "")


def save(state: TrainState, log: RunLog, only_best: bool = False) -> None:
    """Write a checkpoint while the training waits, and a line about where it lies; `only_best` as in `save_checkpoint`.

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
    _tell_saved(state, log, progress, folder, seconds, seconds)


def _tell_saved(
    state: TrainState, log: RunLog, progress: RunProgress, folder: Path, seconds: float, at_a_signal: float
) -> None:  # fmt: skip
    """Say what else is to be known of a checkpoint that is complete.

    Args:
        seconds: that it took.
        at_a_signal: that it would take if nothing ran beside it.
    """
    iteration, state.last_checkpoint = progress.iteration, folder
    if state.config.options.save_best and iteration == progress.best_iteration:
        log.line(f"  the lowest validation loss so far: {BEST_TRACKER} names iteration {iteration}")
    _warn_of_grace(state, log, at_a_signal)
    if log.active:
        log.event("save", iteration=iteration, seconds=seconds, bytes=_size(folder, log), folder=str(folder))


def _size(folder: Path, log: RunLog) -> int:
    """The bytes of a checkpoint's files. 0 where --keep-last has removed it since, or they cannot be counted."""
    try:
        return folder_bytes(folder) if folder.is_dir() else 0
    except OSError as error:  # the checkpoint is complete; only this rank looks, so it alone would end
        log.warn(f"the size of {folder} cannot be told ({refusal(error).rstrip('.')}); the checkpoint is complete.")
        return 0


def _warn_of_grace(state: TrainState, log: RunLog, seconds: float) -> None:
    """Say after a process's first save whether there is time for one after a signal."""
    grace = state.config.options.exit_grace_seconds
    seconds += state.step_seconds  # which a signal lets end first
    if seconds > grace and not state.has_saved:
        log.line(
            f"  warning: a step and a save take longer than --exit-grace-seconds {grace}, so a signal would end the run without "
            f"a checkpoint: write --exit-grace-seconds {2 * math.ceil(seconds)}, and have the platform wait as long."
        )
    state.has_saved = True
