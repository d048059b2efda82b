"""A run in Weights & Biases."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import wandb

from megatron_patch.sinks.tracker import TrackedRun

_MOST = 128  # characters of a run's name there; longer ones are refused


class Run:
    """One run. Its numbers stand over `iteration`, also those that a run computes again after a stop."""

    def __init__(self) -> None:
        self._run: Any = None

    def start(self, run: TrackedRun) -> tuple[str, str]:
        """Begin or go on; in WANDB_MODE=offline the files lie below OUTPUT_BASEPATH/wandb."""
        folder = os.environ.get("WANDB_DIR") or run.folder
        self._run = wandb.init(
            project=run.project,
            name=run.name[:_MOST],
            id=run.known_as,
            resume="allow" if run.known_as else None,
            dir=str(folder),
            config=dict(run.settings),
            allow_val_change=True,
            settings=wandb.Settings(console="off", silent=True),
        )
        self._run.define_metric("iteration")
        self._run.define_metric("*", step_metric="iteration")
        return self._run.id, self._run.url or str(self._run.dir)

    def log(self, values: Mapping[str, float], iteration: int, seconds: float) -> None:
        """Hand the numbers to wandb's own process, which sends them."""
        self._run.log({**values, "iteration": iteration, "_timestamp": seconds})

    def finish(self, failed: bool) -> None:
        """Wait until everything was sent."""
        self._run.finish(exit_code=1 if failed else 0)
