"""Rows of the embedding and of the output layer in memory, where tensor parallelism does not divide the vocabulary.

Imports no torch.
"""

from __future__ import annotations

# Rows of each rank's share that are added to: 16 bytes of bfloat16, which tensor cores want rows of logits to begin at.
_ALIGNMENT = 8


def padded_rows(rows: int, tensor_parallel_size: int) -> int:
    """`rows` where TP divides them, else the next multiple of 8 · TP.

    Not Megatron's 128 · TP: there it sizes what is stored, and must be one number for many TPs. Here the padding is in
    memory alone, nothing is padded that need not be, and LLaMA's 32000 rows stay 32000.
    """
    if rows % tensor_parallel_size == 0:
        return rows
    step = _ALIGNMENT * tensor_parallel_size
    return -(-rows // step) * step


def rows_of_rank(rows: int, tensor_parallel_size: int, rank: int) -> tuple[int, int]:
    """(first row, number of rows that are vocabulary) of one tensor-parallel rank's share; what follows them is padding."""
    share = padded_rows(rows, tensor_parallel_size) // tensor_parallel_size
    first = rank * share
    return first, max(0, min(share, rows - first))


def splitting_finding(rows: int, tensor_parallel_size: int) -> str | None:
    """Why `rows` cannot be split, None where they can: each rank must have rows of its own."""
    if rows_of_rank(rows, tensor_parallel_size, tensor_parallel_size - 1)[1]:
        return None
    return f"a vocabulary of {rows} rows is too small for it: write a smaller one."
