"""How probable the model finds tokens: those of a prompt, those that it chose, and what else could have come."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Score:
    """One token, and what the model thought of it behind those before it.

    Attributes:
        logprob: ln of its probability among all of the model's rows, before temperature and its kin; None for a
            sequence's first token, behind nothing.
        top: the most probable tokens of its place and theirs, from the top.
    """

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Wanted:
    """Which tokens of a pass are scored.

    Attributes:
        rows: for each, the place in the pass of the token before it.
        labels: the tokens themselves.
        count: how many of the most probable tokens are told beside each.
    """

    rows: Sequence[int]
    labels: Sequence[int]
    count: int

    @property
    def shape(self) -> tuple[int, int]:
        """Of the numbers that `score` gives."""
        return len(self.rows), 1 + 2 * self.count


def score(logits: torch.Tensor, labels: torch.Tensor, count: int, vocabulary: int | None) -> torch.Tensor:
    """How probable `labels` are.

    Args:
        logits: fp32 [R, V].
        labels: int64 [R].
        count: of the most probable tokens.
        vocabulary: tokens from there on have no text, and are not told.

    Returns:
        fp64 [R, 1 + 2 · count]: ln of the label's probability, the most probable tokens, ln of theirs.
    """
    found = logits.log_softmax(dim=-1)
    top, tokens = found[:, :vocabulary].topk(count, dim=-1)
    return torch.cat([found.gather(1, labels[:, None]).double(), tokens.double(), top.double()], dim=1)


def scores(labels: Sequence[int], numbers: torch.Tensor) -> list[Score]:
    """The rows that `score` gave for `labels`."""
    count = numbers.shape[1] // 2
    rows = numbers.tolist()
    return [Score(label, row[0], tuple(zip(map(int, row[1 : 1 + count]), row[1 + count :]))) for label, row in zip(labels, rows)]


def wanted_of(prompts: Sequence[tuple[int, Sequence[int]]], count: int) -> Wanted:
    """All tokens of `prompts` but the first of each; a prompt comes with the place of its first token in the pass."""
    rows = [row for begin, prompt in prompts for row in range(begin, begin + len(prompt) - 1)]
    return Wanted(rows, [token for _, prompt in prompts for token in prompt[1:]], count)


def by_prompt(prompts: Sequence[tuple[int, Sequence[int]]], known: Sequence[Score]) -> list[list[Score]]:
    """The scores of each of `prompts`, its first token's among them; `known` has those of `wanted_of`'s tokens."""
    rest = iter(known)
    return [[Score(prompt[0]), *itertools.islice(rest, len(prompt) - 1)] for _, prompt in prompts]
