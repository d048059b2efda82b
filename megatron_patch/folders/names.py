"""Folders of checkpoints by name, without opening one. Imports no torch."""

from __future__ import annotations

from pathlib import Path

TRACKER = "latest_checkpointed_iteration.txt"


def checkpoint_root(path: Path) -> Path | None:
    """The folder with the tracker file: `path` itself, or its parent. None if neither has one.

    `path` may be one iteration's folder that is gone.
    """
    return next((folder for folder in (path, path.parent) if (folder / TRACKER).is_file()), None)


def holds_tokenizer(folder: Path | None) -> bool:
    """Whether one of the files that `data.tokenizer` reads is there."""
    return folder is not None and any((folder / name).is_file() for name in ("tokenizer.model", "tokenizer.json"))
