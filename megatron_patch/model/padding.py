"""Rows of the vocabulary's two matrices that fill up a rank's share: zero for ever, and in memory alone.

Their logits take no part in the loss, so their gradients are zero; Adam and weight decay leave zero as it is.
"""

from __future__ import annotations

import megatron_patch.core.device  # noqa: F401  prepares megatron-core for this machine

from typing import Any

import torch
from megatron.core.dist_checkpointing.mapping import ReplicaId, ShardedTensor, ShardedTensorFactory


def without_padding(entry: ShardedTensor, rows: int, first: int, valid: int) -> ShardedTensorFactory:
    """`entry`, a rank's share [R / TP, H] of a padded matrix, as its first `valid` rows at row `first` of [`rows`, H].

    A factory, as core uses them for gate and up: it also makes the entries of the optimizer's tensors, and puts the zeros back
    into what was loaded.
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
        (part,) = loaded
        return torch.cat([part, part.new_zeros(height - valid, width)])

    return ShardedTensorFactory(entry.key, entry.data, build, merge, entry.replica_id)


def zero_padding(weight: Any, valid: int) -> None:
    """Rows from `valid` on become zero, where random initialization has filled them."""
    with torch.no_grad():
        weight[valid:].zero_()
