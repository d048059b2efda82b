"""AC sel where memory is left over: layers keep unfused attention's probabilities in place of computing them again.

What is computed again is what was computed, so it changes no bit.
"""

from __future__ import annotations

import megatron_patch.core.device  # noqa: F401  prepares megatron-core for this machine

from collections.abc import Sequence
from typing import Any

from megatron_patch.config import TrainConfig
from megatron_patch.core.transformer_config import DTYPES
from megatron_patch.kernels.attention import recomputes_itself
from megatron_patch.model.attention import LlamaSelfAttention


def recomputing(model: Any, config: TrainConfig) -> list[LlamaSelfAttention]:
    """Attention of the layers that could keep probabilities, in their order; of packed samples none could."""
    if config.options.packing:
        return []
    found = [one for one in model.modules() if isinstance(one, LlamaSelfAttention) and one.checkpoint_core_attention]
    return [one for one in found if recomputes_itself(one.core_attention.backend, None)]


def bytes_of_layer(config: TrainConfig) -> int:
    """Bytes of one layer's probabilities [B·N, S, S] of a micro-batch, on one rank."""
    heads = config.model.num_attention_heads // config.tensor_model_parallel_size
    return heads * config.micro_batch_size * config.sample_length**2 * DTYPES[config.weight_precision].itemsize


def keep(attentions: Sequence[LlamaSelfAttention]) -> None:
    """Let them keep their probabilities from now on."""
    for one in attentions:
        one.checkpoint_core_attention = False
