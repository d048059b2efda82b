"""Which of several algorithms of one product takes the least time when it runs for long.

A short race does not find it. Products that go on for long bring an H200 to its power limit, which lowers its clock by
a quarter. From then on a product costs what energy it takes, and the algorithm of the fewest clock cycles may take the
most. The clock follows the power with a time constant of about 40 ms (fitted to blocks of products that alternate). So
an algorithm's own cost shows only after some 70 ms of nothing else. Hence two rounds: a short race, at whatever clock,
rules out what cannot win; the finalists then run for that long each.

Nothing here knows what a product is: `run` launches it and takes the time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

Algorithm = TypeVar("Algorithm")
Run = Callable[[int, Algorithm], float]  # (turns, algorithm) → milliseconds of so many products in a row

_HEAT = 80.0  # milliseconds of products, after which an idle GPU is at its power limit and its clock has fallen
_ROUNDS, _TURNS = 2, 5  # the race: measurements of each candidate, products in each
# Finalists: at most so many, and none that takes more than this factor of the shortest time in the race. To measure all
# candidates for long would lengthen a run's start too much.
_CLOSE, _FINALISTS = 1.15, 6
_SETTLE, _LONG = 70.0, 40.0  # milliseconds of a finalist: until the clock is its own, and measured after that
# The best so many within this factor are measured a second time: one measurement scatters by some per cent.
_LAST, _SURE = 3, 1.02


def fastest(run: Run[Algorithm], algorithms: Sequence[Algorithm]) -> Algorithm | None:
    """The algorithm that takes the least time when it runs for long; None if there is none."""
    if len(algorithms) < 2:
        return next(iter(algorithms), None)
    _heat(run, algorithms[0])
    short = race(run, algorithms)
    finalists = _ahead(dict(enumerate(short)), _FINALISTS, _CLOSE)
    long = {place: _for_long(run, algorithms[place], short[place]) for place in finalists}
    last = _ahead(long, _LAST, _SURE)
    if len(last) > 1:
        long = {place: long[place] + _for_long(run, algorithms[place], short[place]) for place in last}
    return algorithms[min(long, key=long.__getitem__)]


def _ahead(spent: dict[int, float], most: int, factor: float) -> list[int]:
    """The places of the shortest times, best first: at most `most`, and none above `factor` times the best."""
    ranked = sorted(spent, key=spent.__getitem__)
    return [place for place in ranked[:most] if spent[place] <= factor * spent[ranked[0]]]


def _heat(run: Run[Algorithm], algorithm: Algorithm) -> None:
    """Keep the GPU busy for `_HEAT` milliseconds, so that the race does not begin at an idle GPU's clock."""
    run(math.ceil(_HEAT / _short(run, algorithm)), algorithm)


def race(run: Run[Algorithm], algorithms: Sequence[Algorithm]) -> list[float]:
    """Milliseconds of one product with each algorithm, briefly measured.

    They run first to last and then last to first, so that a drift of the clock favours none.
    """
    spent = [0.0] * len(algorithms)
    for turn in range(_ROUNDS):
        places = range(len(algorithms))
        for place in places if turn % 2 == 0 else reversed(places):
            spent[place] += _short(run, algorithms[place]) / _ROUNDS
    return spent


def _for_long(run: Run[Algorithm], algorithm: Algorithm, short: float) -> float:
    """Milliseconds of one product at the clock that this algorithm brings about; `short` is its time in the race."""
    run(math.ceil(_SETTLE / short), algorithm)
    turns = math.ceil(_LONG / short)
    return run(turns, algorithm) / turns


def _short(run: Run[Algorithm], algorithm: Algorithm) -> float:
    """Milliseconds of one product, from `_TURNS` in a row after one that is not counted."""
    run(1, algorithm)
    return run(_TURNS, algorithm) / _TURNS
