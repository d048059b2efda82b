"""Rows of the embedding and of the output layer: how many each tensor-parallel rank has, and how many are padding.

There is padding where TP does not divide the vocabulary. Imports no torch.
"""

from __future__ import annotations

# A padded share is a multiple of 8 rows. Rows of bf16 logits then begin at multiples of 16 bytes, as tensor cores need.
_ALIGNMENT = 8


def padded_rows(rows: int, tensor_parallel_size: int) -> int:
    """How many rows the whole matrix has in memory: `rows` if TP divides them, otherwise the next multiple of 8 · TP.

    Megatron-LM pads to a multiple of 128 · TP, always, because its padded matrices are stored and must suit many TPs.
    Here padding exists in memory alone, so only what must be padded is. LLaMA's 32000 rows stay 32000.
    """
    if rows % tensor_parallel_size == 0:
        return rows
    step = _ALIGNMENT * tensor_parallel_size
    return -(-rows // step) * step


def rows_of_rank(rows: int, tensor_parallel_size: int, rank: int) -> tuple[int, int]:
    """(first row, number of rows of the vocabulary) of one tensor-parallel rank's share; its other rows are padding."""
    share = padded_rows(rows, tensor_parallel_size) // tensor_parallel_size
    first = rank * share
    return first, max(0, min(share, rows - first))


def splitting_finding(rows: int, tensor_parallel_size: int) -> str | None:
    """A phrase if `rows` cannot be split, because the last rank would have padding alone; else None."""
    if rows_of_rank(rows, tensor_parallel_size, tensor_parallel_size - 1)[1]:
        return None
    return f"a vocabulary of {rows} rows is too small for it: write a smaller one."
