"""A checkpoint's tracker file, which names the iteration to load: `release`, or a number. Imports no torch."""

from __future__ import annotations

import re
from pathlib import Path

from megatron_patch.errors import UserError
from megatron_patch.folders.durable_files import write_text

TRACKER = "latest_checkpointed_iteration.txt"
RELEASE = "release"
_MOST_DIGITS = 12  # of an iteration's number


def checkpoint_root(path: Path) -> Path | None:
    """The folder with the tracker file: `path` itself, or its parent. None if neither has one.

    `path` may be one iteration's folder that is gone.
    """
    return next((folder for folder in (path, path.parent) if (folder / TRACKER).is_file()), None)


def read_tracker(root: str | Path) -> str | None:
    """What the tracker file says, `release` or digits; None where there is no tracker file.

    Raises:
        UserError: it says something else.
    """
    path = Path(root) / TRACKER
    if not path.is_file():
        return None
    with open(path, encoding="utf-8", errors="replace") as stream:
        text = stream.read(4096).strip()
    if text != RELEASE and not re.fullmatch(f"[0-9]{{1,{_MOST_DIGITS}}}", text):
        raise UserError(f"{path} says {text[:40]!r}; it holds 'release' or an iteration's number: write that there.")
    return text


def write_tracker(root: str | Path, value: str) -> None:
    """Replace the tracker file atomically: readers see the old value or the new one, also after a power cut."""
    write_text(Path(root) / TRACKER, value)
