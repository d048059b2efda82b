"""From paths to the histories of their runs, with what could not be read as sentences. Imports no torch."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from megatron_patch.errors import UserError
from megatron_patch.folders.layout import iteration_folder
from megatron_patch.folders.recorded_run import read_run_config
from megatron_patch.folders.tracker import read_tracker
from megatron_patch.formats.json_files import one_line
from megatron_patch.language.sentences import fill, in_language
from megatron_patch.report.found_runs import FoundRun, StartFolder, find_runs
from megatron_patch.report.history import History, stitched
from megatron_patch.report.start import Start, read_start


def read_runs(paths: Iterable[str]) -> tuple[list[History], list[str]]:
    """The runs below `paths`, each once, and the notes of all.

    Raises:
        UserError: a path holds no run, or none of the runs has a line of training.
    """
    found: dict[tuple[str, str], FoundRun] = {}
    for path in paths:
        for run in find_runs(path):
            found.setdefault((os.path.realpath(run.base), run.name), run)
    runs, notes = [], []
    for run in found.values():
        history, said = _history(run)
        notes += said
        if history.training["iteration"] or history.validation:
            runs.append(history)
        else:
            notes.append(fill("{} has no line of training yet, and is left out.", one_line(run.name)))
    if not runs:
        raise UserError("None of these runs has a line of training yet; try again when the first log line is there.")
    return runs, notes


def _history(run: FoundRun) -> tuple[History, list[str]]:
    notes: list[str] = []
    starts = [start for folder in run.starts if (start := _start(folder, notes)) is not None]
    history = stitched(run.base, run.name, starts)
    if not history.opening and starts:
        starts[-1].opening = _from_checkpoint(run, notes)
    return history, notes


def _start(folder: StartFolder, notes: list[str]) -> Start | None:
    """One start; None where its files cannot be read, as a note then says."""
    if folder.metrics is None:
        from megatron_patch.report.tensorboard_events import read_events

        assert folder.events is not None
        notes.append(fill("{} has no metrics.jsonl; its numbers are TensorBoard's.", one_line(folder.events.name)))
        try:
            return read_events(folder.date, folder.events)
        except UserError as error:
            notes.append(in_language(str(error)))
            return None
    start = read_start(folder.date, folder.metrics)
    if start.unreadable:
        notes.append(fill("{}: unreadable lines, such as one that a kill tore: {}.", one_line(folder.metrics), start.unreadable))
    return start


def _from_checkpoint(run: FoundRun, notes: list[str]) -> dict[str, object]:
    """What the run's last checkpoint recorded, for one that left no metrics.jsonl; nothing if there is none."""
    root = Path(run.base) / "checkpoint" / run.name
    try:
        tracker = read_tracker(root)
        recorded = read_run_config(iteration_folder(root, int(tracker))) if tracker and tracker.isdigit() else None
    except (OSError, UserError) as error:
        notes.append(fill("The arguments of {} are not shown: {}", one_line(run.name), in_language(str(error))))
        return {}
    return {"arguments": recorded} if recorded else {}
