"""How many rows of a 2023 checkpoint's embedding and output layer are tokens beyond config.json's. Imports no torch.

What the original records, by program:
    converter (checkpoint_reshaping_and_interoperability.py)   orig_vocab_size and padded_vocab_size, both without the extra rows
    hf2te.py                       padded_vocab_size with the extra rows; no orig_vocab_size
    training                       padded_vocab_size = the tokenizer's size + extra_vocab_size
Both converters append the extra rows in fp32. None of them pads; NVIDIA's Megatron-LM does, to a multiple of
make_vocab_size_divisible_by × TP.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from megatron_patch.errors import UserError


@dataclass(frozen=True)
class VocabularyRows:
    """What a checkpoint's files say about the vocabulary."""

    rows: int  # of the embedding, all tensor-parallel ranks together
    ranks: int  # tensor-parallel ranks, T
    is_wider: bool  # the embedding is fp32 beside 16-bit weights
    arguments: Any  # a namespace of the recorded arguments, or None

    def recorded(self, name: str) -> int | None:
        """The whole number that the arguments hold as `name`; None where they do not."""
        value = getattr(self.arguments, name, None)
        return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def recorded_vocab_size(found: VocabularyRows) -> int | None:
    """V without extra rows, where there is no config.json; None where no argument tells."""
    padded, extra = found.recorded("padded_vocab_size"), found.recorded("extra_vocab_size")
    return found.recorded("orig_vocab_size") or (padded - (extra or 0) if padded is not None else None)


def extra_rows(found: VocabularyRows, vocab_size: int) -> int:
    """Rows beyond `vocab_size` that belong to tokens; the others beyond it are padding.

    In doubt a row is kept: a row too many changes nothing, a row too few loses a token.
    """
    beyond = found.rows - vocab_size
    if beyond <= 0 or (found.recorded("padded_vocab_size") == found.rows and _is_padding(found, vocab_size)):
        return 0
    return beyond


def _is_padding(found: VocabularyRows, vocab_size: int) -> bool:
    """Whether `padded_vocab_size`, which all rows make up, means padding here."""
    if found.recorded("extra_vocab_size") is not None or found.is_wider:
        return False
    if found.recorded("orig_vocab_size") == vocab_size:
        return True
    step = (found.recorded("make_vocab_size_divisible_by") or 0) * found.ranks
    return bool(step) and found.rows == -(-vocab_size // step) * step


def claimed_rows(extra: int, rows: int, vocab_size: int, wanted: int, where: object) -> int:
    """The extra rows that a conversion or a run takes: EXTRA_VOCAB_SIZE `wanted` compared with what `where` has.

    0 keeps the `extra` rows that the files tell; where they tell none, `wanted` may claim some of those beyond `vocab_size`.

    Raises:
        UserError: EXTRA_VOCAB_SIZE contradicts the checkpoint.
    """
    if wanted in (0, extra):
        return extra
    beyond = max(0, rows - vocab_size)
    if extra == 0 and wanted <= beyond:
        return wanted
    right = f"{extra}, or 0, which keeps them" if extra else str(beyond)
    raise UserError(f"{where} has {rows} rows for a vocabulary of {vocab_size}, {beyond} of them beyond it: write {right}.")
