"""Whether a run still learns: iterations in a row that were not finite, and a loss that leaps."""

from __future__ import annotations

import megatron_patch.core.device  # noqa: F401  prepares megatron-core for this machine

import math
import statistics
from collections import deque
from pathlib import Path

from megatron_patch.data.batches import BatchPlan
from megatron_patch.errors import RunStopped
from megatron_patch.train.log import RunLog
from megatron_patch.train.state import StepResult, TrainState

_WINDOW = 50  # losses with which a new one is compared
_DEVIATIONS = 6.0  # median absolute deviations; of normal noise one loss in 40,000 lies so far above the median
_LEAST_RISE = 0.02  # of the median: where losses hardly differ, a few deviations are no leap
_SMALLEST_SCALE = 1.0  # core's: fp16's loss scale does not fall below it
_BATCHES, _SAMPLES = 3, 16  # that the sentence about a stopped run names


class LossLeaps:
    """Finds the loss that leaps above those before it. A loss that stays up is told once."""

    def __init__(self) -> None:
        self._losses: deque[float] = deque(maxlen=_WINDOW)
        self._is_up = False

    def add(self, loss: float) -> tuple[float, float] | None:
        """Take the loss of an iteration.

        Returns:
            The median of the 50 losses before it and how far above it a loss may be, if this one is the first that is
            further up; None otherwise, and while there are fewer than 50.
        """
        before = list(self._losses)
        self._losses.append(loss)
        if len(before) < _WINDOW:
            return None
        median = statistics.median(before)
        deviation = statistics.median(abs(one - median) for one in before)
        allowed = max(_DEVIATIONS * deviation, _LEAST_RISE * abs(median))
        was_up, self._is_up = self._is_up, loss - median > allowed
        return (median, allowed) if self._is_up and not was_up else None


class Health:
    """What the iterations of this process say about the run. Each rank has one, and all come to the same."""

    def __init__(self, state: TrainState, plan: BatchPlan, log: RunLog) -> None:
        self._state, self._plan, self._log = state, plan, log
        self._leaps = LossLeaps()
        self.skips = 0  # iterations in a row that were not finite

    def step_done(self, result: StepResult, lr: float) -> None:
        """Look at an iteration that has been counted in the state.

        Args:
            lr: with which it was done.

        Raises:
            RunStopped: as many in a row as `--max-consecutive-skips` allows were not finite. Every rank raises it.
        """
        if not result.found_inf:
            self.skips = 0
            if result.tokens and self._log.active and (leap := self._leaps.add(result.loss)):
                median, allowed = leap
                self._log.warn(
                    f"iteration {self._state.iteration}: the loss leapt to {result.loss:.4g}; over the last {_WINDOW} "
                    f"iterations its median was {median:.4g}, and {allowed:.2g} above that is usual noise."
                )
            return
        self.skips += not self._is_searching(result)
        most = self._state.config.options.max_consecutive_skips
        if most and self.skips >= most:
            self.stop(lr)

    def _is_searching(self, result: StepResult) -> bool:
        """Whether fp16 still looks for its first loss scale: none was good enough yet, and a smaller one can be."""
        state = self._state
        none_yet = state.iteration == state.skipped_iterations
        return state.config.precision == "fp16" and none_yet and result.loss_scale > _SMALLEST_SCALE

    def stop(self, lr: float) -> None:
        """End the run, whose last iteration was not finite.

        Raises:
            RunStopped: always.
        """
        state = self._state
        count = f"The last {self.skips} iterations, up to {state.iteration}, were" if self.skips > 1 else None
        raise RunStopped(
            f"{count or f'Iteration {state.iteration} was'} not finite (loss or gradient was NaN or infinite), and changed "
            f"no weight; the learning rate was {lr:.6E}. {_samples(self._plan, state.iteration)}. {last_checkpoint(state)} "
            "Look at these samples; write a lower LR, a longer warm-up or PR bf16 to go on from there, or allow more by "
            "--max-consecutive-skips."
        )


def _samples(plan: BatchPlan, iteration: int) -> str:
    """The numbers of the training samples in the last batches, as a phrase."""
    batches = []
    for number in range(max(0, iteration - _BATCHES), iteration):
        samples = plan.global_batch(number)
        more = f" and {len(samples) - _SAMPLES} more" if len(samples) > _SAMPLES else ""
        batches.append(f"{', '.join(map(str, samples[:_SAMPLES]))}{more} in iteration {number + 1}")
    return f"Samples of the training data, counted from 0: {'; '.join(batches)}"


def last_checkpoint(state: TrainState) -> str:
    """A sentence about the checkpoint that the same command goes on from.

    No file is read for it: it is said where the disk or the file server has just failed.
    """
    if state.last_checkpoint is None:
        return f"The run has no checkpoint in {Path(state.config.checkpoint_folder)}."
    return f"The last good checkpoint is {state.last_checkpoint}."


def is_loss_finite(result: StepResult) -> bool:
    """Whether the loss of an iteration, which this rank knows, is a finite number."""
    return math.isfinite(result.loss)
