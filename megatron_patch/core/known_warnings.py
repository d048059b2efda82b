"""Warnings of megatron-core and torch that do not reach the console, because a user can do nothing about them.

A row names one warning by its text and by who gives it: its class and modules, or a logger. Every other warning is
shown, and a new one of the same modules too.
"""

from __future__ import annotations

import logging
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
    KnownWarning(
        r".*is experimental and still under active development",
        UserWarning,
        r"megatron\.core\.models\.mimo\.",
        "core 0.19 imports its models of several media by itself; none of them is used here.",
    ),
)


@dataclass(frozen=True)
class KnownLine(logging.Filter):
    """One line of a library's log: the start of its text and the logger that writes it, and why it says nothing."""

    message: str
    logger: str
    reason: str

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the line is shown."""
        return not record.getMessage().startswith(self.message)


KNOWN_LINES = (
    KnownLine(
        "No CUDA runtime is found, using CUDA_HOME",
        "torch.utils.cpp_extension",
        "A torch for CUDA on a machine without a GPU; here nothing is compiled.",
    ),
    KnownLine(
        "DistributedDataParallel: full_param_layout not provided",
        "megatron.core.distributed.distributed_data_parallel",
        "core from 0.18 on can be handed the layout of the gradient buffer, and makes the same one where it is not.",
    ),
    KnownLine(
        "GPTModel IS DEPRECATED",
        "megatron.core.models.gpt.gpt_model",
        "core 0.19 will build models another way; which core runs is pyproject.toml's business.",
    ),
)


def silence_known_warnings() -> None:
    """Filter each row's warning in this process. Call it before megatron-core is imported, which gives some of them."""
    for line in KNOWN_LINES:
        logging.getLogger(line.logger).addFilter(line)
    for row in KNOWN_WARNINGS:
        warnings.filterwarnings("ignore", row.message, row.category, row.module)
