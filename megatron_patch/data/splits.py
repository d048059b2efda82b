"""Which shares of indexed data core's datasets can be built from: each part of a split needs tokens, not only documents.

core looks for as many epochs as give the samples that a run takes. For a part without tokens it looks for ever, and for one
of a few tokens it lists every document of the part once an epoch.
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
_LONGEST_INDEX = 100_000_000  # documents that core lists for a part of less than one sample: 2 GB while it shuffles them


@dataclass(frozen=True)
class _Part:
    """The part of one pair that a split gives to training, validation or test."""

    documents: int
    tokens: int

    def is_usable(self, sequence_length: int, samples: int) -> bool:
        if self.tokens == 0:
            return False
        epochs = math.ceil((samples * sequence_length + 1) / self.tokens)
        return self.tokens > sequence_length or epochs * self.documents <= _LONGEST_INDEX


def usable_split(split: str, pairs: list[tuple[float, str]], sequence_length: int = 1, samples: Sequence[int] = (0, 0, 0)) -> str:
    """`split` with 0 for each share that gives some pair no token. `samples`: of each part, as many as the run takes.

    Raises:
        UserError: a pair has nothing for training, or cannot be read.
    """
    shares = [float(share) for share in split.split(",")]
    shares += [0.0] * (3 - len(shares))
    while True:
        # What is left of a split is normalized anew, so that its parts begin and end elsewhere; hence again.
        text = ",".join(np.format_float_positional(share, trim="-") for share in shares)
        unusable = _unusable(text, pairs, sequence_length, samples)
        if unusable.get(0):
            raise UserError(_nothing_to_train(unusable[0], split))
        if not unusable:
            return text
        for place in unusable:
            shares[place] = 0.0


def repetitions(split: str, pairs: list[tuple[float, str]], sequence_length: int) -> Iterator[str]:
    """A sentence for each part whose tokens do not fill one sample."""
    for _, prefix in pairs:
        for name, part in zip(_NAMES, _parts(prefix, split)):
            if part is not None and part.tokens <= sequence_length:
                yield (f"{prefix}: the split {split} gives {name} {_tokens(part.tokens)}, fewer than one sample of "
                       f"{sequence_length + 1}, so each sample repeats them")  # fmt: skip


def _unusable(
    split: str, pairs: list[tuple[float, str]], sequence_length: int, samples: Sequence[int]
) -> dict[int, tuple[str, _Part]]:
    """Places in the split of what some pair has nothing for, with that pair's prefix."""
    found: dict[int, tuple[str, _Part]] = {}
    for _, prefix in pairs:
        for place, part in enumerate(_parts(prefix, split)):
            if part is not None and not part.is_usable(sequence_length, samples[place]):
                found.setdefault(place, (prefix, part))
    return found


def _parts(prefix: str, split: str) -> list[_Part | None]:
    """Training, validation and test of a pair; None where the share is 0. core counts sequences, which it calls documents."""
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
    return f"{count or 'no'} token{'' if count == 1 else 's'}"
