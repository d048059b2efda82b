"""What every place that a run's numbers go to can be told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_patch.config import TrainConfig


@dataclass(frozen=True)
class RunStart:
    """What is known when the first step is about to begin.

    Attributes:
        config: the run's configuration.
        folder: log/NAME_DATE of this start.
        iteration, consumed_samples: how far the run has come before; 0 at its beginning.
        train_iters: iterations of the whole run.
        world_size: processes.
    """

    config: TrainConfig
    folder: Path
    iteration: int
    consumed_samples: int
    train_iters: int
    world_size: int


class Sink:
    """One place that a run's numbers go to. A method that a sink does not write does nothing.

    Only the rank that writes the log has sinks. Their methods are called between two steps, while the device may still
    be busy, and must not wait for it. An OSError of one ends this sink, and not the run.

    Attributes:
        name: what a sentence calls it.
    """

    name = "sink"

    def began(self, start: RunStart) -> None:
        """Take up a run that is about to do its first step here."""

    def step(self, iteration: int, loss: float | None) -> None:
        """Take an iteration that is done.

        loss: its mean loss; None if it was skipped or had no token to learn.
        """

    def numbers(self, values: Mapping[str, float], iteration: int, samples: int) -> None:
        """Take the numbers of a log line or of an evaluation.

        Args:
            values: TensorBoard's tag → value. A tag is Megatron's where Megatron has it.
            iteration, samples: how far the run has come.
        """

    def event(self, kind: str, values: Mapping[str, object]) -> None:
        """Take something that happened, such as a save; docs/report.md lists the kinds and their values."""

    def close(self) -> None:
        """Finish; the run has ended, for whatever reason."""


def flat(values: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, whose keys are joined with points."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{before}{key}"
        found |= flat(value, f"{name}.") if isinstance(value, Mapping) and value else {name: value}
    return found
