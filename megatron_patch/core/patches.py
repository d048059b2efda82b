"""The one table of replacements inside megatron-core: what, why, and when to look again.

A kernel enters through core's own slots (see model/); a row stands here only where there is no slot. Applying twice
does nothing; a row whose target is gone, or a megatron-core outside the tried range, is an error.
"""

from __future__ import annotations

import megatron_patch.core.device  # noqa: F401  prepares megatron-core for this machine

import importlib
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import megatron.core

from megatron_patch.core.adam import Adam
from megatron_patch.core.weight_gradients import wgrad_gemm_accum_fp32
from megatron_patch.errors import UserError
from megatron_patch.folders.engine import SUPPORTED, is_supported


@dataclass(frozen=True)
class Patch:
    """`module`.`attribute` becomes `replacement`, because of `why`; look at it again at `review_at` of megatron-core."""

    module: str
    attribute: str
    replacement: Any
    why: str
    review_at: str


_NO_ADAM = "torch's AdamW does not resume in the distributed optimizer, and its foreach form needs a copy of all gradients"

PATCHES = (
    Patch("megatron.core.optimizer", "Adam", Adam, _NO_ADAM, "0.17"),
    Patch("megatron.core.optimizer.distrib_optimizer", "Adam", Adam, "the sharded optimizer accepts this class only", "0.17"),
    Patch("megatron.core.optimizer", "USING_PYTORCH_OPTIMIZER", False, "Adam above takes Apex's arguments", "0.17"),
    Patch(
        "megatron.core.optimizer.distrib_optimizer",
        "HAVE_APEX_OR_TE",
        True,
        "the step is counted in the parameter group, as Apex does, so state moves the way it does there",
        "0.17",
    ),
    Patch(
        "megatron.core.tensor_parallel.layers",
        "_grad_accum_fusion_available",
        True,
        "the product below answers for Apex's extension",
        "0.17",
    ),
)

# Absent without Apex, so it is added where the rows above replace.
ADDITIONS = (
    Patch(
        "megatron.core.tensor_parallel.layers",
        "fused_weight_gradient_mlp_cuda",
        SimpleNamespace(wgrad_gemm_accum_fp32=wgrad_gemm_accum_fp32),
        "core accumulates weight gradients in fp32 inside the product through this name only",
        "0.17",
    ),
)


def apply_patches() -> None:
    """Put every row in place.

    Raises:
        UserError: this megatron-core is none of those that the table was tried with (`folders/engine.py` has the range). A patch
            could replace something else there, and training would go wrong without a word.
        RuntimeError: a megatron-core of that range has no such name.
    """
    version = megatron.core.__version__
    if not is_supported(version):
        low, high = (".".join(map(str, bound)) for bound in SUPPORTED)
        raise UserError(
            f"megatron-core {version} is used, and this project was tried with {low} up to, but not including, {high}: "
            f"run pip install 'megatron-core>={low},<{high}', or name such a source tree as MEGATRON_PATH."
        )
    for patch in PATCHES:
        module = importlib.import_module(patch.module)
        if not hasattr(module, patch.attribute):
            raise RuntimeError(
                f"{patch.module} of megatron-core {version} has no {patch.attribute}, which megatron_patch replaces "
                f"({patch.why}): please report it."
            )
        setattr(module, patch.attribute, patch.replacement)
    for patch in ADDITIONS:
        setattr(importlib.import_module(patch.module), patch.attribute, patch.replacement)
