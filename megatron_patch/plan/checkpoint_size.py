"""How many bytes a training checkpoint takes on the disk, and whether they are free there. Imports no torch."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from megatron_patch.config import TrainConfig

_WEIGHT = {"fp16": 2, "bf16": 2, "fp32": 4}  # bytes a parameter, in the model's own precision
_MOMENTS, _MAIN = 8, 4  # bytes a parameter: Adam's two in fp32, and the fp32 weight
_WRITTEN = ("log", "tensorboard", "data_cache", "products")  # folders below OUTPUT_BASEPATH, besides checkpoint
_MARGIN = 1 << 20  # bytes of descriptions beside the tensors


def checkpoint_bytes(config: TrainConfig) -> int:
    """The size of one checkpoint of the run, within a few MB.

    fp32 without ZeRO is the one case in which the fp32 weights are the model's own, and are stored once.
    """
    count = config.model.parameter_count(config.extra_vocab_size)
    weights = count * _WEIGHT[config.precision]
    if config.options.save_weights_only:
        return weights + _MARGIN
    is_stored_once = config.precision == "fp32" and not config.use_distributed_optimizer
    return weights + count * (_MOMENTS + (0 if is_stored_once else _MAIN)) + _MARGIN


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
