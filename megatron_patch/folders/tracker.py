"""A checkpoint's tracker files: which iteration to load, `release` or a number, and which is the best. No torch."""

from __future__ import annotations

import re
from pathlib import Path

from megatron_patch.errors import UserError, naming
from megatron_patch.folders.durable_files import write_text

TRACKER = "latest_checkpointed_iteration.txt"
BEST_TRACKER = "best_checkpointed_iteration.txt"  # names the checkpoint of the lowest validation loss
RELEASE = "release"
_MOST_DIGITS = 12  # of an iteration's number


def checkpoint_root(path: Path) -> Path | None:
    """The folder with the tracker file: `path` itself, or its parent. None if neither has one.

    `path` may be one iteration's folder that is gone.
    """
    return next((folder for folder in (path, path.parent) if (folder / TRACKER).is_file()), None)


def read_tracker(root: str | Path, name: str = TRACKER) -> str | None:
    """What the tracker file `name` says, `release` or digits; None where there is no such file.

    Raises:
        UserError: it says something else.
    """
    path = Path(root) / name
    if not path.is_file():
        return None
    with naming(path), open(path, encoding="utf-8", errors="replace") as stream:
        text = stream.read(4096).strip()
    if text != RELEASE and not re.fullmatch(f"[0-9]{{1,{_MOST_DIGITS}}}", text):
        raise UserError(f"{path} says {text[:40]!r}; it holds 'release' or an iteration's number: write that there.")
    return text


def write_tracker(root: str | Path, value: str, name: str = TRACKER) -> None:
    """Replace a tracker file atomically: readers see the old value or the new one, also after a power cut."""
    write_text(Path(root) / name, value)
