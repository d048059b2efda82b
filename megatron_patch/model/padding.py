"""Padding rows of the vocabulary's two matrices, where TP does not divide the vocabulary. They exist in memory alone.

They are zero and stay zero: the loss leaves their logits out, so their gradients are zero, and Adam and weight decay
leave zero as it is. So a checkpoint need not have them.
"""

from __future__ import annotations

import megatron_patch.core.device  # noqa: F401  prepares megatron-core for this machine

from typing import Any

import torch
from megatron.core.dist_checkpointing.mapping import ReplicaId, ShardedTensor, ShardedTensorFactory


def without_padding(entry: ShardedTensor, rows: int, first: int, valid: int) -> ShardedTensorFactory:
    """The checkpoint entry of a matrix without its padding.

    Args:
        entry: core's entry of this rank's part [R / TP, H], with padding.
        rows: rows of the whole matrix without padding.
        first: the row of the whole matrix at which this rank's part begins.
        valid: how many rows of this rank's part are vocabulary.

    Returns:
        A factory. core uses factories for gate and up: it makes the entries of the optimizer's tensors with them too,
        and asks them to put together what was loaded, which is where the zeros come back.
    """
    height, width = entry.local_shape

    def build(key: str, tensor: torch.Tensor, replica_id: ReplicaId, flattened_range: slice | None) -> list[ShardedTensor]:
        part = tensor[:valid]
        return [
            ShardedTensor(
                key=key,
                data=part,
                dtype=part.dtype,
                local_shape=tuple(part.shape),
                global_shape=(rows, width),
                global_offset=(first, 0),
                axis_fragmentations=None,  # the last rank's share is smaller: no regular grid
                replica_id=replica_id,
                allow_shape_mismatch=entry.allow_shape_mismatch,  # other programs' files may hold padding
            )
        ]

    def merge(loaded: list[torch.Tensor]) -> torch.Tensor:
        """What was loaded, [valid, H], with zero rows up to this rank's [R / TP, H]."""
        (part,) = loaded
        return torch.cat([part, part.new_zeros(height - valid, width)])

    return ShardedTensorFactory(entry.key, entry.data, build, merge, entry.replica_id)


def zero_padding(weight: Any, valid: int) -> None:
    """Set the rows of `weight` [R / TP, H] from `valid` on to zero. Random initialization has filled them."""
    with torch.no_grad():
        weight[valid:].zero_()
