"""A tensor-parallel rank's share of a weight, read from a lazy tensor straight into the model's memory."""

from __future__ import annotations

import torch

from megatron_patch.errors import UserError
from megatron_patch.formats.lazy import LazyTensor, Rows, pieces, stack
from megatron_patch.weights.table import EMBEDDING, OUTPUT_LAYER, Place

# Weights of which a rank has columns; of the other matrices it has rows.
BY_COLUMNS = ("decoder.layers.self_attention.linear_proj.weight", "decoder.layers.mlp.linear_fc2.weight")
_BY_ROWS = (
    EMBEDDING,
    OUTPUT_LAYER,
    "decoder.layers.self_attention.linear_qkv.weight",
    "decoder.layers.mlp.linear_fc1.weight",
)


def split_axis(place: Place) -> int | None:
    """The axis along which tensor parallelism cuts a weight; None: every rank has all of it."""
    if place.entry.key in BY_COLUMNS:
        return 1
    return 0 if place.entry.key in _BY_ROWS else None


def share_of_rows(place: Place, tensor: LazyTensor, rank: int, size: int) -> LazyTensor:
    """Rank's rows [R / size, …] of `tensor` [R, …]; of gate and up, its rows of each."""
    parts = 2 if place.entry.rule == "gate_up" else 1
    height = tensor.shape[0] // parts
    share = height // size
    return stack([Rows(tensor, part * height + rank * share, part * height + (rank + 1) * share) for part in range(parts)])


def copy_rows(where: str, place: Place, tensor: LazyTensor, out: torch.Tensor, column_rank: int = 0) -> None:
    """The rows of `tensor` into `out`, cast to its dtype; of wider rows the columns of rank `column_rank`.

    Args:
        where: the checkpoint, for the error.

    Raises:
        UserError: the shapes do not fit.
    """
    columns = slice(None)
    if out.dim() == 2:
        columns = slice(column_rank * out.shape[1], (column_rank + 1) * out.shape[1])
    if tensor.shape[0] != out.shape[0] or tensor.shape[1:] and tensor.shape[1] % out.shape[1]:
        raise UserError(f"{where}: {place} has shape {list(tensor.shape)}, of which {list(out.shape)} is no share.")
    with torch.no_grad():
        out = out.detach()
        for first, last, piece in pieces(tensor):
            out[first:last].copy_(piece[:, columns] if out.dim() == 2 else piece)
