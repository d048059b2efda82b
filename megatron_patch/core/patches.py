"""The one table of replacements inside megatron-core: what is replaced, why, and when to look at it again.

A kernel enters through core's own slots (see model/). A row stands here only where core has no slot. Applying the table
twice is the same as once. A row whose target is gone is an error, and so is a megatron-core that was not tried.
"""

from __future__ import annotations

import megatron_patch.core.device  # noqa: F401  prepares megatron-core for this machine

import importlib
import re
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import megatron.core

from megatron_patch.core.adam import Adam
from megatron_patch.core.array_files import NUMPY, load_array
from megatron_patch.core.weight_gradients import wgrad_gemm_accum_fp32
from megatron_patch.errors import UserError
from megatron_patch.folders.engine import is_supported, supported_range


@dataclass(frozen=True)
class Patch:
    """`module`.`attribute` becomes `replacement`.

    Attributes:
        why: the reason.
        review_at: the version of megatron-core at which the row must be looked at again.
        until: the version from which on core does without the row, which then changes nothing; empty: none so far.
        since: the version from which on core has the target; before it the row is left out. Empty: all have it.
    """

    module: str
    attribute: str
    replacement: Any
    why: str
    review_at: str
    until: str = ""
    since: str = ""


_NO_ADAM = "torch's AdamW does not resume in the distributed optimizer, and its foreach form needs a copy of all gradients"

_PICKLES = "core would unpickle files of sample indices, which run code; a mapped array is all that they may be"

PATCHES = (
    Patch("megatron.core.optimizer", "Adam", Adam, _NO_ADAM, "0.20"),
    Patch(
        "megatron.core.optimizer.distrib_optimizer", "Adam", Adam, "the sharded optimizer accepts this class only", "0.20", "0.19"
    ),
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
    Patch("megatron.core.datasets.gpt_dataset", "numpy", NUMPY, _PICKLES, "0.20", until="0.19"),
    Patch("megatron.core.datasets.blended_dataset", "numpy", NUMPY, _PICKLES, "0.20", until="0.19"),
    Patch("megatron.core.datasets.gpt_dataset", "safe_numpy_load", load_array, _PICKLES, "0.20", since="0.19"),
    Patch("megatron.core.datasets.blended_dataset", "safe_numpy_load", load_array, _PICKLES, "0.20", since="0.19"),
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


def has_target(patch: Patch) -> bool:
    """Whether this megatron-core is one that has what the row replaces."""
    here, since = (list(map(int, re.findall("[0-9]+", text)[:2])) for text in (megatron.core.__version__, patch.since))
    return here >= since


def apply_patches() -> None:
    """Put every row in place.

    Raises:
        UserError: this megatron-core is none of those that the table was tried with (`folders/engine.py` has the
            range). A patch could replace something else there, and training would go wrong without a word.
        RuntimeError: a megatron-core of that range has no such name.
    """
    version = megatron.core.__version__
    if not is_supported(version):
        raise UserError(
            f"megatron-core {version} is used, and this project was tried with {supported_range()}: run pip install "
            f"'megatron-core{supported_range()}', or name such a source tree as MEGATRON_PATH."
        )
    for patch in filter(has_target, PATCHES):
        module = importlib.import_module(patch.module)
        if not hasattr(module, patch.attribute):
            raise RuntimeError(
                f"{patch.module} of megatron-core {version} has no {patch.attribute}, which megatron_patch replaces "
                f"({patch.why}): please report it."
            )
        setattr(module, patch.attribute, patch.replacement)
    for patch in ADDITIONS:
        setattr(importlib.import_module(patch.module), patch.attribute, patch.replacement)
