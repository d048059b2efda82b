"""TensorBoard's event files in `tensorboard/NAME_DATE/`, under Megatron's tags."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from megatron_patch.sinks.sink import Sink

# Megatron writes these over iterations alone, and all others over consumed samples too.
_OVER_ITERATIONS = ("throughput", "mem-max-allocated-bytes")


class TensorBoardFiles(Sink):
    """The event files of one start of a run."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), max_queue=100, flush_secs=30)

    def numbers(self, values: Mapping[str, float], iteration: int, samples: int) -> None:
        """Write a scalar for each value over iterations, and over samples where Megatron does."""
        for tag, value in values.items():
            self._writer.add_scalar(tag, value, iteration)
            if tag not in _OVER_ITERATIONS:
                self._writer.add_scalar(f"{tag} vs samples", value, samples)

    def close(self) -> None:
        """Write what is left, and close."""
        self._writer.close()
