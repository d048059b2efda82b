"""Where this process's main thread is, for a thread that watches whether it moves. Imports no torch."""

from __future__ import annotations

# (places so far, the iteration, what the main thread does there); replaced as one, so that no reader sees half of it
_now: tuple[int, int, str] = (0, 0, "starting")

_done = 0  # of something long that is done at one place; only whether it grows counts


def move(what: str, iteration: int | None = None) -> None:
    """The main thread begins something else; in a new iteration if that is given."""
    global _now
    _now = (_now[0] + 1, _now[1] if iteration is None else iteration, what)


def now() -> tuple[int, int, str]:
    """(number of places so far, iteration, what is done there)."""
    return _now


def advance(count: int = 1) -> None:
    """Something long at one place has come further, by bytes for example.

    Several threads may call it, without a lock: what is lost of a count does no harm.
    """
    global _done
    _done += count


def advanced() -> int:
    """How far `advance` has come."""
    return _done
