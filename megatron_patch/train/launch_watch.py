"""Whether a GPU waits for Python to launch its kernels, in a run whose micro-batches are not CUDA graphs.

Two micro-batches of a step are timed by events. One is launched as usual. Before the other one the GPU is held until
most of its kernels have been launched, so its time is the time of the kernels. The GPU was idle for the difference.
"""

from __future__ import annotations

import megatron_patch.core.device as device

import statistics
import time
from typing import Any, Protocol

import torch

from megatron_patch.config import TrainConfig

_BEFORE, _STEPS = 2, 3  # steps of a process that are not looked at, since they allocate and measure; steps that are
_USUAL, _HELD = 1, 2  # micro-batches of a step
_MUCH = 0.15  # share of the time


class Clock(Protocol):
    """Host and device time, in seconds."""

    def now(self) -> float:
        """On the host."""

    def mark(self) -> Any:
        """When the device gets here."""

    def between(self, first: Any, second: Any) -> float:
        """Of two marks that the device has passed."""

    def hold(self, seconds: float) -> None:
        """The device does nothing for at least that long when it gets here."""


class _Cuda:
    _CYCLES = 2.0e9  # in a second, at most

    def now(self) -> float:
        return time.perf_counter()

    def mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def between(self, first: torch.cuda.Event, second: torch.cuda.Event) -> float:
        return first.elapsed_time(second) / 1e3

    def hold(self, seconds: float) -> None:
        torch.cuda._sleep(int(seconds * self._CYCLES))


class LaunchWatch:
    """Looks at `_STEPS` steps of a process, then says once what it has seen."""

    def __init__(self, config: TrainConfig, obstacle: str, clock: Clock | None = None) -> None:
        self.config, self.obstacle = config, obstacle
        self.clock: Clock = clock or _Cuda()
        self.step, self.number = 0, 0
        self.marks: list[Any] = []
        self.launched = 0.0  # host time at which the usual micro-batch began
        self.usual: list[float] = []
        self.held: list[float] = []

    def micro_batch(self) -> None:
        """One begins."""
        if _BEFORE <= self.step < _BEFORE + _STEPS:
            if self.number == _USUAL:
                self.launched = self.clock.now()
            if self.number in (_USUAL, _HELD, _HELD + 1):
                self.marks.append(self.clock.mark())
            if self.number == _HELD:
                self.clock.hold(self.clock.now() - self.launched)
                self.marks.append(self.clock.mark())
        self.number += 1

    def step_done(self) -> str:
        """After a step, of which the device has done all micro-batches. Returns a line for the log, at most once."""
        if len(self.marks) == 4:  # around the usual one, and around the held one
            self.usual.append(self.clock.between(*self.marks[:2]))
            self.held.append(self.clock.between(*self.marks[2:]))
        self.marks.clear()
        self.step, self.number = self.step + 1, 0
        if self.step != _BEFORE + _STEPS or not self.usual:
            return ""
        idle = 1 - statistics.median(self.held) / statistics.median(self.usual)
        return self._line(idle) if idle > _MUCH else ""

    def _line(self, idle: float) -> str:
        helps = []
        if not self.config.options.cuda_graphs:
            helps.append("--cuda-graphs true")
        helps.append(f"BATCH_SIZE above {self.config.micro_batch_size}, whose kernels are longer")
        if self.config.tensor_model_parallel_size > 1:
            helps.append(f"TP below {self.config.tensor_model_parallel_size}")
        return (
            f"  the GPU is idle for {idle:.0%} of a micro-batch, since Python launches kernels more slowly than they run "
            f"(CUDA graphs: no, {self.obstacle}). What helps: {'; '.join(helps)}."
        )


def launch_watch(config: TrainConfig, obstacle: str) -> LaunchWatch | None:
    """A watch for a run on GPUs without graphs; None for others and for pipelines, whose stages wait for each other."""
    watches = device.HAS_CUDA and obstacle and config.pipeline_model_parallel_size == 1
    return LaunchWatch(config, obstacle) if watches else None
