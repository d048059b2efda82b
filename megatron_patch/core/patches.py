"""The one table of replacements inside megatron-core: what is replaced, why, and when to look at it again.

A kernel enters through core's own slots (see model/). A row stands here only where core has no slot. Applying the table
twice is the same as once. A row whose target is gone is an error.
"""

from __future__ import annotations

import megatron_patch.core.device  # noqa: F401  prepares megatron-core for this machine

import importlib
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from megatron_patch.core.adam import Adam
from megatron_patch.core.weight_gradients import wgrad_gemm_accum_fp32


@dataclass(frozen=True)
class Patch:
    """`module`.`attribute` becomes `replacement`.

    Attributes:
        why: the reason.
        review_at: the version of megatron-core at which the row must be looked at again.
    """

    module: str
    attribute: str
    replacement: Any
    why: str
    review_at: str


_NO_ADAM = "torch's AdamW does not resume in the distributed optimizer, and its foreach form needs a copy of all gradients"

PATCHES = (
    Patch("megatron.core.optimizer", "Adam", Adam, _NO_ADAM, "0.20"),
    Patch("megatron.core.optimizer.distrib_optimizer", "Adam", Adam, "the sharded optimizer accepts this class only", "0.20"),
    Patch("megatron.core.optimizer", "USING_PYTORCH_OPTIMIZER", False, "Adam above takes Apex's arguments", "0.20"),
    Patch(
        "megatron.core.optimizer.distrib_optimizer",
        "HAVE_APEX_OR_TE",
        True,
        "the step is counted in the parameter group, as Apex does, so state moves the way it does there",
        "0.20",
    ),
    Patch(
        "megatron.core.tensor_parallel.layers",
        "_grad_accum_fusion_available",
        True,
        "the product below answers for Apex's extension",
        "0.20",
    ),
)

# core sets this name only where Apex is installed, so there is nothing to replace: it is added.
ADDITIONS = (
    Patch(
        "megatron.core.tensor_parallel.layers",
        "fused_weight_gradient_mlp_cuda",
        SimpleNamespace(wgrad_gemm_accum_fp32=wgrad_gemm_accum_fp32),
        "core accumulates weight gradients in fp32 inside the product through this name only",
        "0.20",
    ),
)


def apply_patches() -> None:
    """Put every row in place.

    Raises:
        RuntimeError: this megatron-core has no such name any more.
    """
    for patch in PATCHES:
        module = importlib.import_module(patch.module)
        if not hasattr(module, patch.attribute):
            raise RuntimeError(
                f"{patch.module} of this megatron-core has no {patch.attribute}, which megatron_patch replaces "
                f"({patch.why}); install one that pyproject.toml names."
            )
        setattr(module, patch.attribute, patch.replacement)
    for patch in ADDITIONS:
        setattr(importlib.import_module(patch.module), patch.attribute, patch.replacement)
