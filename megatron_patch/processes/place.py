"""Where this process's main thread is, for a thread that watches whether it moves. Imports no torch."""

from __future__ import annotations

# (places so far, the iteration, what the main thread does there); replaced as one, so that no reader sees half of it
_now: tuple[int, int, str] = (0, 0, "starting")


def move(what: str, iteration: int | None = None) -> None:
    """The main thread begins something else; in a new iteration if that is given."""
    global _now
    _now = (_now[0] + 1, _now[1] if iteration is None else iteration, what)


def now() -> tuple[int, int, str]:
    """(number of places so far, iteration, what is done there)."""
    return _now
