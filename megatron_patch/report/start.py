"""One start of a run as columns of numbers and a few events, read from its metrics.jsonl. Imports no torch."""

from __future__ import annotations

import datetime
import math
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_patch.folders.metrics_file import MetricsLines

# Keys of a training line, each a column; `at` is the line's time, in seconds since 1970.
TRAINING = (
    "at", "iteration", "consumed_samples", "consumed_tokens", "loss", "learning_rate", "grad_norm", "loss_scale",
    "seconds_per_iteration", "tokens_per_second", "tflops_per_gpu", "max_allocated_bytes", "skipped_iterations",
    "nan_iterations",
)  # fmt: skip
VALIDATION = ("at", "iteration", "consumed_samples", "consumed_tokens", "loss")
NAN = float("nan")  # in a column: the line had no such number

Columns = dict[str, "array[float]"]


def columns(names: tuple[str, ...]) -> Columns:
    """An empty column for each name."""
    return {name: array("d") for name in names}


@dataclass
class Start:
    """What one start of a run did, as far as its lines tell.

    Attributes:
        first: iterations that were done before it.
        validation: curves by their names; the only one of most runs has none.
        saves, skipped: iterations.
        from_events: the numbers are TensorBoard's, in fp32; there was no metrics.jsonl.
        unreadable: lines that were no JSON.
    """

    date: str
    training: Columns = field(default_factory=lambda: columns(TRAINING))
    validation: dict[str, Columns] = field(default_factory=dict)
    opening: dict[str, Any] = field(default_factory=dict)  # the line of kind start
    data: dict[str, Any] = field(default_factory=dict)  # the line of kind data
    stop: dict[str, Any] = field(default_factory=dict)  # the line of kind stop
    saves: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[int] = field(default_factory=list)
    resumed: int | None = None
    began: float = NAN
    ended: float = NAN
    from_events: bool = False
    unreadable: int = 0

    @property
    def first(self) -> int:
        """Iterations that were done before this start's first line."""
        if self.resumed is not None:
            return self.resumed
        iterations = self.training["iteration"]
        return int(iterations[0]) - 1 if iterations and self.from_events else 0

    @property
    def seconds(self) -> float:
        """From its first line to its last; 0 where that is unknown."""
        return max(0.0, self.ended - self.began) if math.isfinite(self.ended - self.began) else 0.0

    def append(self, into: Columns, line: Mapping[str, Any], at: float) -> None:
        """A line's numbers as the columns' next row. A line whose iteration is no number belongs nowhere."""
        if not math.isfinite(plain_number(line.get("iteration"))):
            self.unreadable += 1
            return
        for name, column in into.items():
            column.append(at if name == "at" else plain_number(line.get(name)))


def read_start(date: str, path: Path) -> Start:
    """The start whose metrics.jsonl `path` is."""
    start, lines = Start(date), MetricsLines(path)
    for line in lines:
        _take(start, line)
    start.unreadable += lines.unreadable
    return start


def _take(start: Start, line: dict[str, Any]) -> None:
    kind, at = line["kind"], _moment(line.get("time"))
    if math.isfinite(at):
        # A clock may be set back while a run goes on.
        start.began, start.ended = (at, at) if math.isnan(start.began) else (min(start.began, at), max(start.ended, at))
    iteration = plain_number(line.get("iteration"))
    if kind == "training":
        start.append(start.training, line, at)
    elif kind == "validation":
        name = str(line.get("name") or "")
        start.append(start.validation.setdefault(name, columns(VALIDATION)), line, at)
    elif kind == "start":
        start.opening = line
    elif kind == "data":
        start.data = line
    elif kind == "stop":
        start.stop = line
    elif math.isfinite(iteration):
        if kind == "resume":
            start.resumed = int(iteration)
        elif kind == "save":
            start.saves.append(line)
        elif kind == "skipped":
            start.skipped.append(int(iteration))


def plain_number(value: object) -> float:
    """A JSON value as a float; NaN where it is no number, or one beyond floats."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or abs(value) > 1e300:
        return NAN
    return float(value)


def _moment(text: object) -> float:
    try:
        return datetime.datetime.fromisoformat(str(text)).timestamp()
    except (ValueError, OverflowError, OSError):
        return NAN
