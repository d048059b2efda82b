"""What a LoRA run's checkpoint holds: what it has trained. `peft_folder.py` writes the adapter for PEFT beside it.

The frozen weights are those of PRETRAIN_CHECKPOINT_PATH, which run_config.json names with a fingerprint of its files.
Random ones are nowhere else, so they are stored.
"""

from __future__ import annotations

import megatron_patch.core.device  # noqa: F401  prepares megatron-core for this machine

from typing import Any

import torch

from megatron_patch.config import TrainConfig
from megatron_patch.errors import UserError
from megatron_patch.folders.fingerprint import folder_fingerprint
from megatron_patch.folders.layout import resolve_checkpoint


def stores_base(config: TrainConfig) -> bool:
    """Whether a checkpoint of the run holds all weights of the model."""
    return config.lora is None or config.load is None


def trained_alone(model: torch.nn.Module, entries: dict[str, Any]) -> dict[str, Any]:
    """Of core's `entries` for a checkpoint those of weights that are trained."""
    return {name: entries[name] for name, parameter in model.named_parameters() if parameter.requires_grad}


def load_trained(model: torch.nn.Module, loaded: dict[str, Any]) -> None:
    """Put what a checkpoint held into `model`: every weight, or all that are trained.

    Raises:
        RuntimeError: one of the trained is missing, or one has another shape.
    """
    absent = {name for name, parameter in model.named_parameters() if parameter.requires_grad} - loaded.keys()
    result = model.load_state_dict(loaded, strict=False)
    if absent or result.unexpected_keys:
        raise RuntimeError(f"missing: {sorted(absent)}; unexpected: {sorted(result.unexpected_keys)}")


def check_base(config: TrainConfig, fingerprint: str) -> None:
    """Look whether the frozen weights are those over which the run has trained. On the first rank.

    Args:
        fingerprint: what the checkpoint recorded of their files; empty if nothing.

    Raises:
        UserError: they are gone, or others are in their place.
    """
    assert config.load is not None
    try:
        found = folder_fingerprint(resolve_checkpoint(config.load).folder)
    except (OSError, UserError) as error:
        raise UserError(f"The run's frozen weights are those of {config.load}, which cannot be read: {error}") from None
    if fingerprint and found != fingerprint:
        raise UserError(
            f"The run has trained its adapters over other weights than {config.load} holds now; put these back, or name "
            "the folder that has them as PRETRAIN_CHECKPOINT_PATH."
        )
