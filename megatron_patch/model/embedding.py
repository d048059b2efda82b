"""Token embedding over core's weight, with a backward that adds to DDP's fp32 buffer.

It writes [S, B, H] at once, split as the layers take it; core's own makes [B, S, H] and transposes.
"""

from __future__ import annotations

import megatron_patch.core.device  # noqa: F401  prepares megatron-core for this machine

import torch
from megatron.core.models.common.embeddings.language_model_embedding import LanguageModelEmbedding
from megatron.core.tensor_parallel.mappings import (
    reduce_from_tensor_model_parallel_region,
    reduce_scatter_to_sequence_parallel_region,
)

from megatron_patch.core.weight_gradients import direct_main_grad
from megatron_patch.kernels.embedding import embedding


def embed(module: LanguageModelEmbedding, tokens: torch.Tensor) -> torch.Tensor:
    """tokens [B, S] → [S, B, H], or this rank's part [S / TP, B, H] under sequence parallelism.

    Each tensor-parallel rank has some rows of the weight and gives zeros for the others, so a sum over ranks completes
    it.
    """
    words = module.word_embeddings
    weight, start = words.weight, words.vocab_start_index
    rows = embedding(tokens.t(), weight, vocab_start=start, weight_grad=direct_main_grad(weight))
    if words.tp_group.size() == 1:
        return rows
    if words.reduce_scatter_embeddings:
        return reduce_scatter_to_sequence_parallel_region(rows, group=words.tp_group)
    return reduce_from_tensor_model_parallel_region(rows, group=words.tp_group)
