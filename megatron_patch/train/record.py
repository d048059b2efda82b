"""What a start of a run records beside its numbers: what runs it, and its data."""

from __future__ import annotations

import megatron_patch.core.device as device

import os
import platform
import socket
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from megatron_patch import __version__
from megatron_patch.config import TrainConfig
from megatron_patch.data.batches import RunData
from megatron_patch.data.splits import training_tokens
from megatron_patch.data_paths import IndexedPairs


def versions() -> dict[str, object]:
    """The program's name → its version."""
    found = {"megatron_patch": __version__, "megatron_core": version("megatron-core"), "torch": str(torch.__version__)}
    return {**found, "cuda": torch.version.cuda if device.HAS_CUDA else None, "python": platform.python_version()}


def machine() -> dict[str, object]:
    """Which processes run on what. GPUs of one run are of one kind."""
    kind = torch.cuda.get_device_name() if device.HAS_CUDA else "cpu"
    found: dict[str, object] = {"device": kind, "processes": int(os.environ.get("WORLD_SIZE", "1"))}
    return {**found, "processes_per_node": int(os.environ.get("LOCAL_WORLD_SIZE", "1")), "host": socket.gethostname()}


def data_facts(config: TrainConfig, data: RunData) -> dict[str, Any]:
    """How long the run is, and how much data there is.

    `samples` is one pass over JSON data. Of indexed data core makes as many as the run takes; there `parts` has each
    pair's share of the samples, and its tokens for training. Several JSON files without weights have no share.
    """
    facts: dict[str, Any] = {"train_iters": data.train_iters, "tokens_per_sample": config.sample_length}
    batches = sum(part.batches for part in data.validation)
    facts |= {"eval_every": data.eval_every, "eval_batches": batches, "save_every": data.save_every}
    source = config.train_data
    if isinstance(source, IndexedPairs):
        total = sum(weight for weight, _ in source.pairs)
        tokens = training_tokens(config.options.split, source.prefixes)
        found = zip(source.pairs, tokens)
        return facts | {"parts": [{"path": path, "share": weight / total, "tokens": count} for (weight, path), count in found]}
    shares: list[float | None] = [weight / sum(source.weights) for weight in source.weights]
    shares = shares or [None] * len(source.paths)
    facts["parts"] = [{"path": path, "share": share} for path, share in zip(source.paths, shares)] if len(shares) > 1 else []
    valid = sum(part.plan.samples for part in data.validation)
    return facts | {"samples": data.plan.samples, "passes": data.plan.passes, "valid_samples": valid}


def folder_bytes(folder: Path) -> int:
    """The bytes of a checkpoint's files."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
