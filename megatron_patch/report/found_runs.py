"""Which runs a path holds, and which folders each of their starts left. Imports no torch."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from megatron_patch.errors import UserError
from megatron_patch.folders.metrics_file import METRICS, name_and_date

_PARTS = ("log", "tensorboard", "checkpoint")


@dataclass(frozen=True)
class StartFolder:
    """What one start of a run left. `metrics` or `events` is None where it has none."""

    date: str  # of NAME_DATE; sorts by time
    metrics: Path | None  # the file
    events: Path | None  # the folder of TensorBoard's files


@dataclass(frozen=True)
class FoundRun:
    """A run's name and place, and its starts in their order."""

    base: Path  # OUTPUT_BASEPATH
    name: str
    starts: tuple[StartFolder, ...]


def find_runs(path: str | Path) -> list[FoundRun]:
    """The runs of an OUTPUT_BASEPATH, or the one run whose folder in log/, tensorboard/ or checkpoint/ `path` is.

    Raises:
        UserError: there is nothing of a training.
    """
    folder = Path(os.path.abspath(path))
    if not folder.is_dir():
        raise UserError(f"There is no folder {path}; give a training's OUTPUT_BASEPATH.")
    if folder.parent.name in _PARTS and not any((folder / part).is_dir() for part in _PARTS):
        dated = name_and_date(folder.name)
        runs = [run for run in _below(folder.parent.parent) if run.name == (dated[0] if dated else folder.name)]
    else:
        runs = _below(folder)
    if not runs:
        raise UserError(f"{path} holds no run: nothing in log/ or tensorboard/; give a training's OUTPUT_BASEPATH.")
    return runs


def _below(base: Path) -> list[FoundRun]:
    """In the order in which they began. A run without a line of any kind is none yet."""
    found: dict[str, dict[str, tuple[Path | None, Path | None]]] = {}
    for part in ("log", "tensorboard"):
        for folder in sorted((base / part).glob("*_*")):
            dated = name_and_date(folder.name)
            if dated is None or not folder.is_dir():
                continue
            metrics, events = found.setdefault(dated[0], {}).get(dated[1], (None, None))
            if part == "log" and (folder / METRICS).is_file():
                metrics = folder / METRICS
            elif part == "tensorboard" and any(folder.glob("events.out.tfevents.*")):
                events = folder
            found[dated[0]][dated[1]] = (metrics, events)
    runs = []
    for name, by_date in sorted(found.items()):
        starts = tuple(StartFolder(date, *by_date[date]) for date in sorted(by_date) if any(by_date[date]))
        if starts:
            runs.append(FoundRun(base, name, starts))
    return sorted(runs, key=lambda run: run.starts[0].date)
