"""Curves of a long run as bins of lines: mean, least and most of each, so that no spike is lost. Imports no torch."""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence

Plain = list[float | int | None]

_DIGITS = 6  # significant ones of what the page holds


def bin_edges(rows: int, most: int) -> list[int]:
    """Where bins of nearly equal size begin, and behind the last one: 0, …, rows. At most `most` bins."""
    count = min(rows, most)
    return [place * rows // count for place in range(count + 1)] if count else [0]


def last_of(column: Sequence[float], edges: Sequence[int]) -> Plain:
    """The last value of each bin: its place on an axis."""
    return [shortened(column[end - 1], 12) for end in edges[1:]]


def binned(column: array[float], edges: Sequence[int]) -> dict[str, Plain] | None:
    """`mean` of each bin's numbers; `least` and `most` too where bins have several lines. None: no number at all."""
    parts = [[value for value in column[low:high] if math.isfinite(value)] for low, high in zip(edges, edges[1:])]
    if not any(parts):
        return None
    found = {"mean": [shortened(math.fsum(part) / len(part)) if part else None for part in parts]}
    if edges[-1] > len(parts):
        found["least"] = [shortened(min(part)) if part else None for part in parts]
        found["most"] = [shortened(max(part)) if part else None for part in parts]
    return found


def shortened(value: float, digits: int = _DIGITS) -> float | int | None:
    """With so many significant digits, and without a fraction of zero; None for what is not finite."""
    if not math.isfinite(value):
        return None
    short = float(f"{value:.{digits}g}")
    return int(short) if short == int(short) and abs(short) < 1e15 else short
