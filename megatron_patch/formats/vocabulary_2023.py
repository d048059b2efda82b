"""How many rows of a 2023 checkpoint's embedding are tokens beyond config.json's vocabulary. Imports no torch.

What the original's programs record:
    checkpoint_reshaping_and_interoperability.py, a converter: orig_vocab_size and padded_vocab_size, both without extra
    rows hf2te.py, another converter: padded_vocab_size with the extra rows; no orig_vocab_size training:
    padded_vocab_size = the tokenizer's size + extra_vocab_size
Both converters append the extra rows in fp32. None of these programs pads. NVIDIA's Megatron-LM pads, to a multiple of
make_vocab_size_divisible_by × TP.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from megatron_patch.errors import UserError


@dataclass(frozen=True)
class VocabularyRows:
    """What a checkpoint's files say about the vocabulary."""

    rows: int  # of the embedding, over all tensor-parallel ranks
    ranks: int  # number of tensor-parallel ranks
    is_wider: bool  # whether the embedding is fp32 while other weights have 16 bits
    arguments: Any  # a namespace of the recorded arguments, or None

    def recorded(self, name: str) -> int | None:
        """The whole number that the recorded arguments hold as `name`; None if they hold none."""
        value = getattr(self.arguments, name, None)
        return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def recorded_vocab_size(found: VocabularyRows) -> int | None:
    """The vocabulary's size without extra rows, as the arguments record it; None if they do not.

    It is asked for where there is no config.json.
    """
    padded, extra = found.recorded("padded_vocab_size"), found.recorded("extra_vocab_size")
    return found.recorded("orig_vocab_size") or (padded - (extra or 0) if padded is not None else None)


def extra_rows(found: VocabularyRows, vocab_size: int) -> int:
    """How many rows beyond `vocab_size` belong to tokens. The rest of them are padding.

    In doubt a row is kept: a row too many changes nothing, while a row too few loses a token.
    """
    beyond = found.rows - vocab_size
    if beyond <= 0 or (found.recorded("padded_vocab_size") == found.rows and _is_padding(found, vocab_size)):
        return 0
    return beyond


def _is_padding(found: VocabularyRows, vocab_size: int) -> bool:
    """Whether the rows up to the recorded `padded_vocab_size` are padding. Some programs count tokens in it."""
    if found.recorded("extra_vocab_size") is not None or found.is_wider:
        return False
    if found.recorded("orig_vocab_size") == vocab_size:
        return True
    step = (found.recorded("make_vocab_size_divisible_by") or 0) * found.ranks
    return bool(step) and found.rows == -(-vocab_size // step) * step


def claimed_rows(extra: int, rows: int, vocab_size: int, wanted: int, where: object) -> int:
    """How many extra rows a conversion or a run takes.

    Args:
        extra: rows of tokens beyond `vocab_size` that the files tell of (see `extra_rows`).
        rows: all rows of the embedding.
        vocab_size: the vocabulary without extra rows.
        wanted: EXTRA_VOCAB_SIZE. 0 takes the `extra` rows. If the files tell of none, it may claim rows beyond
            `vocab_size`.
        where: the checkpoint, for the error.

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
