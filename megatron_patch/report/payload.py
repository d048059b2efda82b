"""What the page knows of runs, as plain values for JSON. `report/page/*.js` reads it. Imports no torch."""

from __future__ import annotations

import datetime
import math
from array import array
from collections.abc import Sequence
from typing import Any

from megatron_patch import __version__
from megatron_patch.language.choice import spoken
from megatron_patch.report.argument_rows import GROUPS, Row, argument_rows, changes, labels, text_of
from megatron_patch.report.history import HOURS, History
from megatron_patch.report.start import NAN, Start, plain_number
from megatron_patch.report.thinning import bin_edges, binned, last_of, shortened
from megatron_patch.report.words import WORDS

_CURVES = (
    "loss", "learning_rate", "grad_norm", "tokens_per_second", "seconds_per_iteration", "max_allocated_bytes", "loss_scale",
)  # fmt: skip
_MOST_MARKS = 2000  # of one kind on one run; every n-th is taken of more
_MOST_TEXT = 2000  # characters of a value


def payload(runs: Sequence[History], points: int, notes: Sequence[str]) -> dict[str, Any]:
    """Everything that the page shows of `runs`.

    Args:
        points: at most so many bins of each curve.
        notes: sentences about what could not be read.
    """
    rows = argument_rows(runs)
    names = labels(runs, rows)
    return {
        "language": spoken(),
        "words": WORDS if spoken() == "zh" else {},
        "version": __version__,
        "made": datetime.datetime.now().astimezone().isoformat(timespec="minutes"),
        "notes": list(notes),
        "groups": list(GROUPS),
        "runs": [_run(run, label, points) for run, label in zip(runs, names)],
        "arguments": [_row(row) for row in rows],
    }


def _row(row: Row) -> dict[str, Any]:
    values = [None if value is None else value[:_MOST_TEXT] for value in row.values]
    return {"group": row.group, "name": row.name, "hint": row.hint, "values": values, "differs": row.differs}


def _run(run: History, label: str, points: int) -> dict[str, Any]:
    table = run.training
    edges = bin_edges(len(table["iteration"]), points)
    curves = {name: binned(table[name], edges) for name in _CURVES}
    return {
        "label": label,
        "name": run.name,
        "folder": str(run.base),
        "count": [high - low for low, high in zip(edges, edges[1:])],
        "axes": _axes(table, edges),
        "curves": {name: curve for name, curve in curves.items() if curve is not None},
        "validation": [_validation(name, found, points) for name, found in sorted(run.validation.items())],
        "saves": _marks(run, [int(save["iteration"]) for save in run.saves]),
        "skipped": _marks(run, run.skipped),
        "starts": [_start(run, place) for place in range(len(run.starts))],
        "facts": _facts(run),
    }


def _axes(table: dict[str, array[float]], edges: list[int]) -> dict[str, Any]:
    """Where a bin stands on each axis. An axis of which a line lacks its number is left out."""
    axes = {"iteration": table["iteration"], "tokens": table["consumed_tokens"], "hours": table[HOURS]}
    return {name: last_of(column, edges) for name, column in axes.items() if all(map(math.isfinite, column))}


def _validation(name: str, table: dict[str, array[float]], points: int) -> dict[str, Any]:
    edges = bin_edges(len(table["iteration"]), points)
    return {"name": name, "axes": _axes(table, edges), "curve": binned(table["loss"], edges)}


def _marks(run: History, iterations: list[int]) -> dict[str, Any]:
    """Places of events on each axis; tokens follow from iterations in proportion."""
    step = -(-len(iterations) // _MOST_MARKS) if iterations else 1
    some = iterations[::step]
    per_iteration = _last(run, "consumed_tokens") / _last(run, "iteration")
    axes: dict[str, Any] = {"iteration": some, "hours": [shortened(run.hours_at(one)) for one in some]}
    if math.isfinite(per_iteration):
        axes["tokens"] = [shortened(one * per_iteration, 12) for one in some]
    return {"total": len(iterations), "axes": axes}


def _start(run: History, place: int) -> dict[str, Any]:
    start, before = run.starts[place], [one.opening for one in run.starts[:place] if one.opening]
    iterations = start.training["iteration"]
    first = start.first
    mark = _marks(run, [first])["axes"]
    if place and "hours" in mark:  # the clock of a start begins where those before it ended
        mark["hours"] = [shortened(run.offsets[place] / 3600)]
    machine = start.opening.get("machine")
    return {
        "date": _date(start),
        "first": first,
        "last": int(iterations[-1]) if iterations else None,
        "repeated": run.repeated[place],
        "seconds": shortened(start.seconds),
        "saves": _saves(start),
        "reason": text_of(start.stop["reason"])[:_MOST_TEXT] if start.stop.get("reason") else "",
        "processes": shortened(plain_number(machine.get("processes"))) if isinstance(machine, dict) else None,
        "changes": changes(before[-1], start.opening)[:50] if before and start.opening else [],
        "source": "TensorBoard" if start.from_events else "metrics.jsonl",
        "mark": {name: values[0] for name, values in mark.items()},
    }


def _date(start: Start) -> str:
    """2026-01-31 12:34:56 of 2026-01-31-12-34-56, which the folder has."""
    day, clock = start.date[:10], start.date[11:].replace("-", ":")
    return f"{day} {clock}"


def _saves(start: Start) -> dict[str, Any]:
    """How many checkpoints, their mean seconds, the last one's bytes."""
    seconds = [value for save in start.saves if math.isfinite(value := plain_number(save.get("seconds")))]
    last = plain_number(start.saves[-1].get("bytes")) if start.saves else NAN
    mean = shortened(math.fsum(seconds) / len(seconds)) if seconds else None
    return {"count": len(start.saves), "seconds": mean, "bytes": shortened(last)}


def _facts(run: History) -> dict[str, Any]:
    """Numbers of the whole run; a key whose number is unknown is None."""
    data = run.data
    last = run.starts[-1]
    losses = [loss for table in run.validation.values() for loss in table["loss"] if math.isfinite(loss)]
    arguments = run.opening.get("arguments")
    given = arguments if isinstance(arguments, dict) else {}
    return {
        "iteration": shortened(_last(run, "iteration")),
        "train_iters": shortened(plain_number(data.get("train_iters")), 12),
        "samples": shortened(_last(run, "consumed_samples"), 12),
        "tokens": shortened(_last(run, "consumed_tokens"), 15),
        "seconds": shortened(math.fsum(start.seconds for start in run.starts)),
        "best_validation": shortened(min(losses)) if losses else None,
        "tokens_per_second": shortened(_median(run.training["tokens_per_second"])),
        "tflops_per_gpu": shortened(_median(run.training["tflops_per_gpu"])),
        "memory": shortened(max((v for v in run.training["max_allocated_bytes"] if v > 0), default=NAN)),
        "reason": text_of(last.stop.get("reason"))[:_MOST_TEXT] if last.stop.get("reason") else "",
        "ended": shortened(last.ended, 12),
        "data": {
            **{key: shortened(plain_number(data.get(key)), 15) for key in ("samples", "valid_samples", "passes")},
            "parts": _parts(data.get("parts")),
        },
        "train_data": text_of(given.get("train_data_path"))[:_MOST_TEXT] if given else None,
        "valid_data": text_of(given.get("valid_data_path"))[:_MOST_TEXT] if given.get("valid_data_path") else None,
    }


def _parts(found: Any) -> list[dict[str, Any]]:
    """Pairs of a blend: path, share of the samples, tokens for training."""
    parts = [part for part in found if isinstance(part, dict)] if isinstance(found, list) else []
    return [
        {
            "path": text_of(part.get("path"))[:_MOST_TEXT],
            **{key: shortened(plain_number(part.get(key)), 12) for key in ("share", "tokens")},
        }
        for part in parts[:100]
    ]


def _last(run: History, name: str) -> float:
    column = run.training[name]
    return column[-1] if column else NAN


def _median(column: Sequence[float]) -> float:
    known = sorted(value for value in column if math.isfinite(value))
    return known[len(known) // 2] if known else NAN
