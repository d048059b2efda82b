"""Warnings of megatron-core and torch that do not reach the console, because a user can do nothing about them.

A row names one warning by its text, its class and the modules that give it. Every other warning is shown, and a new one
of the same modules too.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass


@dataclass(frozen=True)
class KnownWarning:
    """One warning.

    Attributes:
        message: a regular expression for the start of its text.
        module: a regular expression for the name of the module that gives it.
        reason: why it tells a user of this project nothing.
    """

    message: str
    category: type[Warning]
    module: str
    reason: str


KNOWN_WARNINGS = (
    KnownWarning(
        r"(Transformer Engine and )?Apex (is|are) not installed",
        UserWarning,
        r"megatron\.core\.",
        "Neither is needed: this project's kernels stand in core's slots.",
    ),
    KnownWarning(
        r"If you are using transformer_engine as the transformer implementation, the core_attn",
        UserWarning,
        r"megatron\.core\.transformer\.transformer_config$",
        "AC sel means the attention, and core/transformer_config.py asks for it only where the attention is not fused.",
    ),
    KnownWarning(
        r"The \.grad attribute of a Tensor that is not a leaf Tensor is being accessed",
        UserWarning,
        r"megatron\.core\.optimizer\.optimizer$",
        "In fp32 the distributed optimizer's shards are views of the parameters; core looks whether they have a gradient yet.",
    ),
    KnownWarning(
        r"`torch\.distributed\.(reduce_scatter_tensor|all_gather_into_tensor)` is deprecated",
        FutureWarning,
        r"torch\.distributed\.",
        "torch 2.13 has renamed what core calls; both names do the same.",
    ),
    KnownWarning(
        r"Please use DTensor instead and we are deprecating ShardedTensor",
        FutureWarning,
        r"torch\.distributed\.",
        "torch's own checkpoint reader looks at the class of what core gives it to load.",
    ),
)


def silence_known_warnings() -> None:
    """Filter each row's warning in this process. Call it before megatron-core is imported, which gives some of them."""
    for row in KNOWN_WARNINGS:
        warnings.filterwarnings("ignore", row.message, row.category, row.module)
