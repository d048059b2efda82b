"""Who holds a run up, from what each rank tells of itself now and then. Plain values; imports no torch.

The ranks go from step to step together, so if one stands still all do, and the question is who the others wait for.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Report:
    """What a rank's watching thread last told.

    Attributes:
        beats: how often it has told. The thread runs as long as its process does.
        places: how many places the main thread has come to (`place.move`), equal on all ranks at equal places.
        iteration, what: the place.
        pid, host: the process.
        done: grows while something long goes on at one place (`place.advance`); ranks have different numbers.
    """

    beats: int
    places: int
    iteration: int
    what: str
    pid: int
    host: str
    done: int = 0

    def as_text(self) -> str:
        """For the store."""
        return json.dumps(asdict(self))


def report_of(text: str | bytes) -> Report:
    """What `as_text` made."""
    return Report(**json.loads(text))


class Observer:
    """Watches the reports of all ranks.

    Args:
        limit: seconds for which a rank may stand at one place without coming further there.
        longest_look: seconds between two looks above which it was the observer that stood still, as when a whole job
            was stopped and went on; then it begins anew.
    """

    def __init__(self, limit: float, longest_look: float) -> None:
        self._limit, self._longest_look = limit, longest_look
        self._beat_since: dict[int, tuple[int, float]] = {}  # rank → (its count, since when)
        self._place_since: dict[int, tuple[tuple[int, int], float]] = {}  # rank → (place and what is done there, …)
        self._looked: float | None = None
        self._began: float | None = None

    def look(self, reports: Mapping[int, Report], now: float) -> list[int]:
        """The ranks that hold the run up; none while it goes on.

        Args:
            reports: of every rank that has told anything.
            now: seconds of a clock that only goes forward.
        """
        if self._looked is not None and now - self._looked > self._longest_look:
            self._beat_since.clear()
            self._place_since.clear()
            self._began = now
        self._looked = now
        self._began = now if self._began is None else self._began
        for rank, report in reports.items():
            if self._beat_since.get(rank, (None, 0.0))[0] != report.beats:
                self._beat_since[rank] = (report.beats, now)
            here = report.places, report.done
            if self._place_since.get(rank, (None, 0.0))[0] != here:
                self._place_since[rank] = (here, now)
        silent = [rank for rank in reports if now - self._beat_since[rank][1] > self._limit]
        if silent:
            return silent
        training = all(report.iteration > 0 for report in reports.values())
        if not training or min(now - since for _, since in self._place_since.values()) <= self._limit:
            return []
        first = min(report.places for report in reports.values())
        return [rank for rank, report in reports.items() if report.places == first]

    def is_silent(self, rank: int, now: float) -> bool:
        """Whether that rank's thread has told nothing for the limit, or never."""
        since = self._beat_since[rank][1] if rank in self._beat_since else self._began
        return since is not None and now - since > self._limit


def verdict(reports: Mapping[int, Report], guilty: list[int], silent: list[int], minutes: float) -> list[str]:
    """The sentences about a run that stands still: who, where, and where the others wait."""
    lines = []
    everyone = len(guilty) == len(reports)
    for rank in guilty:
        report = reports[rank]
        where = f"iteration {report.iteration}, {report.what}"
        who = f"rank {rank} (process {report.pid} on {report.host})"
        if rank in silent:
            lines.append(
                f"{who} has given no sign of life for {minutes:g} min: it is stopped, it waits inside a library or for a file "
                f"system, or its machine cannot be reached; it was at {where}."
            )
        elif everyone and len(reports) > 1:
            lines.append(f"{who} has stood still for {minutes:g} min at {where}, as all others have.")
        else:
            lines.append(f"{who} has stood still for {minutes:g} min at {where}.")
    waiting: dict[str, list[int]] = {}
    for rank in sorted(set(reports) - set(guilty)):
        waiting.setdefault(f"iteration {reports[rank].iteration}, {reports[rank].what}", []).append(rank)
    lines += [f"rank {', '.join(map(str, ranks))} waits at {where}." for where, ranks in waiting.items()]
    return lines
