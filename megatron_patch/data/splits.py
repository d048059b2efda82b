"""Which parts of a `--split` core can build data sets from: a part needs tokens, not only documents.

core repeats a part as often as gives the samples that a run takes. For a part without tokens it never ends. For a part
of a few tokens it makes a list with every document of the part, once for each repetition.
"""

from __future__ import annotations

import megatron_patch.core.device  # noqa: F401  prepares megatron-core for this machine

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from megatron.core.datasets.blended_megatron_dataset_config import (
    convert_split_vector_to_split_matrix,
    parse_and_normalize_split,
)

from megatron_patch.errors import UserError
from megatron_patch.records.indexed import read_index

_NAMES = ("training", "validation", "test")
# Most documents that core may list for a part of less than one sample. While it shuffles them they take 2 GB.
_LONGEST_INDEX = 100_000_000


@dataclass(frozen=True)
class _Part:
    """The part of one pair that a split gives to training, validation or test: its documents and their tokens."""

    documents: int
    tokens: int

    def is_usable(self, sequence_length: int, samples: int) -> bool:
        """Whether core can make `samples` of `sequence_length` tokens of it, in time and memory."""
        if self.tokens == 0:
            return False
        epochs = math.ceil((samples * sequence_length + 1) / self.tokens)
        return self.tokens > sequence_length or epochs * self.documents <= _LONGEST_INDEX


def usable_split(split: str, prefixes: list[str], sequence_length: int = 1, samples: Sequence[int] = (0, 0, 0)) -> str:
    """`split` with 0 in the place of each share that some pair has no usable part for.

    Args:
        split: shares of training, validation and test, as `98,2,0`.
        prefixes: of the pairs.
        sequence_length: tokens of a sample.
        samples: how many the run takes of each part.

    Raises:
        UserError: a pair has nothing usable for training, or cannot be read.
    """
    shares = [float(share) for share in split.split(",")]
    shares += [0.0] * (3 - len(shares))
    while True:
        # core normalizes the shares that are left. Then parts begin and end elsewhere, so they are looked at again.
        text = ",".join(np.format_float_positional(share, trim="-") for share in shares)
        unusable = _unusable(text, prefixes, sequence_length, samples)
        if unusable.get(0):
            raise UserError(_nothing_to_train(unusable[0], split))
        if not unusable:
            return text
        for place in unusable:
            shares[place] = 0.0


def repetitions(split: str, prefixes: list[str], sequence_length: int) -> Iterator[str]:
    """A sentence for each part whose tokens do not fill one sample."""
    for prefix in prefixes:
        for name, part in zip(_NAMES, _parts(prefix, split)):
            if part is not None and part.tokens <= sequence_length:
                yield (f"{prefix}: the split {split} gives {name} {_tokens(part.tokens)}, fewer than one sample of "
                       f"{sequence_length + 1}, so each sample repeats them")  # fmt: skip


def training_tokens(split: str, prefixes: list[str]) -> list[int]:
    """The tokens that the split gives to training, of each pair."""
    parts = (_parts(prefix, split)[0] for prefix in prefixes)
    return [0 if part is None else part.tokens for part in parts]


def _unusable(split: str, prefixes: list[str], sequence_length: int, samples: Sequence[int]) -> dict[int, tuple[str, _Part]]:
    """Place in the split → the first pair whose part there is not usable: its prefix and that part."""
    found: dict[int, tuple[str, _Part]] = {}
    for prefix in prefixes:
        for place, part in enumerate(_parts(prefix, split)):
            if part is not None and not part.is_usable(sequence_length, samples[place]):
                found.setdefault(place, (prefix, part))
    return found


def _parts(prefix: str, split: str) -> list[_Part | None]:
    """The training, validation and test part of a pair; None for a share of 0.

    core splits a pair by sequences and calls them documents.
    """
    lengths = read_index(prefix).lengths
    parts: list[_Part | None] = []
    for ends in convert_split_vector_to_split_matrix(parse_and_normalize_split(split)):
        if ends is None:
            parts.append(None)
            continue
        begin, end = (round(share * float(len(lengths))) for share in ends)
        parts.append(_Part(end - begin, int(np.sum(lengths[begin:end], dtype=np.int64))))
    return parts


def _nothing_to_train(where: tuple[str, _Part], split: str) -> str:
    """The sentence for a pair (its prefix, its part) that has nothing usable for training."""
    prefix, part = where
    if part.documents == 0:
        documents = len(read_index(prefix).lengths)
        return f"{prefix} has {documents} documents, of which the split {split} leaves none for training."
    few = "" if part.tokens == 0 else ", too few for as many samples as TRAIN_TOKENS asks for"
    return (
        f"{prefix}: the {part.documents} documents that the split {split} gives to training hold "
        f"{_tokens(part.tokens)}{few}; prepare the data again from an input that holds text."
    )


def _tokens(count: int) -> str:
    """`no tokens`, `1 token`, `2 tokens`, …"""
    return f"{count or 'no'} token{'' if count == 1 else 's'}"
