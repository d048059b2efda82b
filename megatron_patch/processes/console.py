"""Lines of what ends or watches a run. A console that is full or gone keeps it from nothing. Imports no torch."""

from __future__ import annotations

import contextlib
import sys


def tell(text: str) -> None:
    """Write a line onto standard error; nothing, if that is a file on a full disk: there is no other place."""
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)
