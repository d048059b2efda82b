"""A run's history, stitched of its starts: where a later one repeated iterations, its numbers count.

Imports no torch.
"""

from __future__ import annotations

import math
from array import array
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_patch.report.start import TRAINING, VALIDATION, Columns, Start, columns

HOURS = "hours"  # a column beside those of the lines: time that the run's starts have taken up to the line


@dataclass
class History:
    """One run.

    Attributes:
        base: OUTPUT_BASEPATH.
        training: columns of TRAINING and HOURS; iterations rise.
        validation: name → the same for validation.
        starts: in their order.
        repeated: for each start, iterations of those before it that it did again.
        offsets: for each start, the seconds that those before it took.
    """

    base: Path
    name: str
    starts: list[Start]
    training: Columns = field(default_factory=lambda: columns((*TRAINING, HOURS)))
    validation: dict[str, Columns] = field(default_factory=dict)
    saves: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[int] = field(default_factory=list)
    repeated: list[int] = field(default_factory=list)
    offsets: list[float] = field(default_factory=list)

    @property
    def opening(self) -> dict[str, Any]:
        """The arguments and versions of the last start that recorded them."""
        return next((one.opening for one in reversed(self.starts) if one.opening), {})

    @property
    def data(self) -> dict[str, Any]:
        """What the last start that recorded it said of the data."""
        return next((one.data for one in reversed(self.starts) if one.data), {})

    def hours_at(self, iteration: float) -> float:
        """The time up to the last line at or before `iteration`; 0 before the first."""
        place = bisect_right(self.training["iteration"], iteration)
        return self.training[HOURS][place - 1] if place else 0.0


def stitched(base: Path, name: str, starts: Sequence[Start]) -> History:
    """The run whose starts these are, in their order.

    A start that has trained replaces everything behind the iteration at which it began, also where it did not come as
    far as those before it: that is what the run's next start goes on from.
    """
    run = History(base, name, list(starts))
    offset = 0.0
    for start in starts:
        run.offsets.append(offset)
        run.repeated.append(_forget(run, start.first) if start.training["iteration"] else 0)
        _extend(run.training, start.training, start, offset)
        for curve, found in start.validation.items():
            _extend(run.validation.setdefault(curve, columns((*VALIDATION, HOURS))), found, start, offset)
        run.saves += start.saves
        run.skipped += start.skipped
        offset += start.seconds
    return run


def _forget(run: History, first: int) -> int:
    """Drop what lies behind iteration `first`. Returns how many iterations that were."""
    last = run.training["iteration"][-1] if run.training["iteration"] else first
    for table in (run.training, *run.validation.values()):
        kept = bisect_right(table["iteration"], first)
        for column in table.values():
            del column[kept:]
    run.saves = [save for save in run.saves if save["iteration"] <= first]
    run.skipped = [iteration for iteration in run.skipped if iteration <= first]
    return max(0, int(last) - first)


def _extend(into: Columns, found: Columns, start: Start, offset: float) -> None:
    """Append what comes behind the last row: iterations rise, whatever a file says."""
    last = into["iteration"][-1] if into["iteration"] else -math.inf
    for row, iteration in enumerate(found["iteration"]):
        if iteration <= last:
            continue
        last = iteration
        for name, column in found.items():
            into[name].append(column[row])
        passed = found["at"][row] - start.began
        hours = (offset + (passed if math.isfinite(passed) else 0.0)) / 3600
        into[HOURS].append(max([hours, *into[HOURS][-1:]]))


def column_of(table: Columns, name: str) -> array[float]:
    """A column, of one's own to change."""
    return array("d", table[name])
