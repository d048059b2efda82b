"""Inputs by target, seed and number. These three decide an input, so any input can be repeated alone on any machine."""

from __future__ import annotations

import time
from pathlib import Path
from random import Random

from tests.fuzz.entry_points import ENTRY_POINTS, Arguments
from tests.fuzz.outcome import Failure, outcome, timed
from tests.fuzz.readers import READERS, Target

TARGETS = (*READERS, *ENTRY_POINTS)


def prepared(name: str, folder: Path) -> Target | Arguments:
    """The target of this name, with its valid input written into `folder`, which is empty before."""
    if name in ENTRY_POINTS:
        return ENTRY_POINTS[name](folder)
    (folder / "files").mkdir()
    return READERS[name](folder / "files")


def attempt(target: Target | Arguments, random: Random) -> tuple[Failure | None, str, float]:
    """Make one input and read it: (what went wrong, the input, seconds)."""
    if isinstance(target, Arguments):
        argv, job = target.make(random)
        began = time.monotonic()
        with target.surroundings(job):
            failure = _read(lambda: target.main(argv))
        return failure, f"{job} {argv}"[:2000], time.monotonic() - began
    changed = target.change(random)
    began = time.monotonic()
    failure = _read(lambda: target.read(random))
    seconds = time.monotonic() - began
    target.restore(changed)
    return failure, "; ".join(f"{name}: {data[:1500]!r}" for name, data in changed.items()), seconds


def _read(call: object) -> Failure | None:
    def read() -> object:
        with timed():
            return call()  # type: ignore[operator]

    return outcome(read)


def random_of(seed: str, name: str, number: int) -> Random:
    return Random(f"{seed}/{name}/{number}")
