"""Lines of what ends or watches a run, which no console that is full or gone may keep from its work. Imports no torch."""

from __future__ import annotations

import contextlib
import sys


def tell(text: str) -> None:
    """Write a line onto standard error, if that takes one: where it is a file on a full disk there is no other place."""
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)
