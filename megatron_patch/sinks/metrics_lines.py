"""`log/NAME_DATE/metrics.jsonl`: every number of a run in full precision, and what happened, an object a line."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from megatron_patch.config import TrainConfig
from megatron_patch.folders.metrics_file import FORMAT, METRICS, MetricsFile
from megatron_patch.sinks.sink import RunStart, Sink

# TensorBoard's tag → the line's key. A tag that is not listed keeps its words, joined by underscores.
_KEYS = {
    "lm loss": "loss",
    "lm loss validation": "loss",
    "lm loss validation ppl": "perplexity",
    "batch-size": "global_batch_size",
    "iteration-time": "seconds_per_iteration",
    "throughput": "tflops_per_gpu",
    "mem-max-allocated-bytes": "max_allocated_bytes",
}
_VALIDATION = "lm loss validation"
_WHOLE = ("global_batch_size", "max_allocated_bytes")  # keys; TensorBoard has floats only


class MetricsSink(Sink):
    """The lines of one start of a run.

    Args:
        folder: log/NAME_DATE.
        versions, machine: what runs it, as `train/record.py` found it.
    """

    name = METRICS

    def __init__(self, folder: Path, config: TrainConfig, versions: Mapping[str, object], machine: Mapping[str, object]) -> None:
        self._file = MetricsFile(folder)
        self._config = config
        self._skipped = {"overflow": 0, "not finite": 0}  # since the last line of numbers
        opening = {"format": FORMAT, "name": config.name, "arguments": config.as_dict()}
        self._file.write("start", {**opening, "versions": dict(versions), "machine": dict(machine)})

    def began(self, start: RunStart) -> None:
        """Note where the run goes on, unless it begins."""
        if start.iteration:
            self._file.write("resume", {"iteration": start.iteration, **self._consumed(start.consumed_samples)})

    def numbers(self, values: Mapping[str, float], iteration: int, samples: int) -> None:
        """Write a line of training, or one of validation."""
        line = {"iteration": iteration, **self._consumed(samples), **{_key(tag): value for tag, value in values.items()}}
        line |= {key: int(value) for key, value in line.items() if key in _WHOLE and isinstance(value, float)}
        if any(tag.partition("/")[0] == _VALIDATION for tag in values):
            # Of several files each has a line with its name, and all together one without.
            name = next((tag.partition("/")[2] for tag in values if "/" in tag), None)
            self._file.write("validation", line if name is None else {"name": name, **line})
            return
        line.setdefault("loss", None)
        line |= {"skipped_iterations": self._skipped["overflow"], "nan_iterations": self._skipped["not finite"]}
        self._skipped = dict.fromkeys(self._skipped, 0)
        self._file.write("training", line)

    def event(self, kind: str, values: Mapping[str, object]) -> None:
        """Write a line of its own kind."""
        if kind == "skipped":
            self._skipped[str(values["why"])] += 1
        self._file.write(kind, values)

    def close(self) -> None:
        """Wait until the lines are on the disk."""
        self._file.close()

    def _consumed(self, samples: int) -> dict[str, object]:
        """Samples and their tokens, padding too, since the run's beginning."""
        return {"consumed_samples": samples, "consumed_tokens": samples * self._config.sample_length}


def _key(tag: str) -> str:
    tag = tag.partition("/")[0]
    return _KEYS.get(tag) or re.sub("[^a-z0-9]+", "_", tag.lower()).strip("_")
