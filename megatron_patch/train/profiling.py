"""--profile: a PyTorch profiler trace of a few iterations, in a folder where TensorBoard finds it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from megatron_patch.config import TrainConfig
from megatron_patch.core.parallel import Layout
from megatron_patch.errors import named, refusal

_LOGGER = logging.getLogger(__name__)


class _Idle:
    """Stands for the profiler in a run that is not profiled."""

    def step(self) -> None:
        """Do nothing."""
        pass


@contextmanager
def profiler(config: TrainConfig, layout: Layout) -> Iterator[Any]:
    """A profiler for the run, or something that does nothing; `step()` is to be called after each iteration."""
    options = config.options
    if not options.profile or not layout.is_logger:
        yield _Idle()
        return
    folder = Path(config.output_path) / "tensorboard" / f"{config.name}_profile"
    schedule = torch.profiler.schedule(
        wait=max(options.profile_step_start - 2, 0),
        warmup=min(1, options.profile_step_start - 1),  # without an iteration before the first one, none can warm up
        active=options.profile_step_end - options.profile_step_start,
        repeat=1,
    )
    write = torch.profiler.tensorboard_trace_handler(str(folder))

    def handler(profile: Any) -> None:
        try:
            write(profile)
        except OSError as error:
            _LOGGER.warning(f"warning: the profile is not written ({refusal(named(error, folder)).rstrip('.')}).")

    with torch.profiler.profile(schedule=schedule, on_trace_ready=handler, record_shapes=True) as profile:
        yield profile
