"""Whether OUTPUT_BASEPATH takes what a run writes: rights in its folders, and room for a checkpoint. No torch."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from megatron_patch.config import TrainConfig
from megatron_patch.plan.checkpoint_size import checkpoint_bytes

_WRITTEN = ("log", "tensorboard", "data_cache", "products")  # folders below OUTPUT_BASEPATH, besides checkpoint


def space_finding(config: TrainConfig) -> str | None:
    """Why no checkpoint of the run fits on OUTPUT_BASEPATH's disk, as a sentence with numbers; None if one does.

    What an interrupted save has left counts as free: the next save removes it first.
    """
    root = Path(config.checkpoint_folder)
    there = next((folder for folder in (root, *root.parents) if folder.is_dir()), Path("."))
    left_over = sum(file.stat().st_size for file in root.glob("iter_*.partial/*") if file.is_file())
    needed, free = checkpoint_bytes(config), shutil.disk_usage(os.path.realpath(there)).free + left_over
    if free >= needed:
        return None
    return (
        f"one checkpoint takes {needed / 1e9:.3g} GB, and the disk of {there} has {free / 1e9:.3g} GB free: make room there, or "
        "write a path on another disk."
    )


def closed_folder(config: TrainConfig) -> str | None:
    """The first folder below OUTPUT_BASEPATH in which the run must write and may not; None if there is none."""
    base = Path(config.output_path)
    folders = (Path(config.checkpoint_folder).parent, Path(config.checkpoint_folder), *(base / name for name in _WRITTEN))
    for folder in folders:
        if folder.exists() and not (folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)):
            return f"the run writes in {folder}, and nothing can be written there: change its permissions, or write another path."
    return None
