"""How the next token is chosen from logits, for many requests at once, each with settings of its own.

The order is that of transformers' `generate`: repetition penalty, temperature, top-k, top-p. All functions are made
of tensor operations without a look at their values, so a CUDA graph can hold them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from megatron_patch.arguments.trained_model_rows import PENALTIES
from megatron_patch.errors import UserError

_WORD = (1 << 64) - 1
# Below this temperature the most probable token is taken. Logits of fp32 that differ do so by about a millionth of
# themselves, so it would come anyway; and a logit that is divided by a much smaller number is infinite.
_LEAST_TEMPERATURE = 1e-6


@dataclass(frozen=True)
class Sampling:
    """One request's settings. The defaults take the most probable token.

    Attributes:
        temperature: logits are divided by it; 0, and what is next to it, takes the most probable token.
        top_k: only this many tokens may come; 0: all.
        top_p: only the most probable tokens may come, as many as reach this probability together; 0 or 1: all.
        repetition_penalty: makes tokens of the prompt and of the answer less probable (Keskar et al. 2019,
            arXiv:1909.05858).
        seed: the same seed, prompt and settings give the same answer, whatever runs beside it.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 1234

    def __post_init__(self) -> None:
        _check("temperature", self.temperature, self.temperature >= 0, "at least 0")
        _check("top_k", self.top_k, self.top_k >= 0, "at least 0")
        _check("top_p", self.top_p, 0 <= self.top_p <= 1, "from 0 to 1")
        is_usual = not (PENALTIES.too_low(self.repetition_penalty) or PENALTIES.too_high(self.repetition_penalty))
        _check("repetition_penalty", self.repetition_penalty, is_usual, "from 0.01 to 100")

    @property
    def is_greedy(self) -> bool:
        """Whether the most probable token always comes, so that nothing is drawn."""
        return self.temperature < _LEAST_TEMPERATURE or self.top_k == 1


def _check(name: str, value: float, allowed: bool, range_: str) -> None:
    if not allowed or value != value or value in (float("inf"),):
        raise UserError(f"{name} is {value}; it must be {range_}.")


@dataclass(frozen=True)
class SamplingRows:
    """The settings of B requests as tensors [B], on the device of the logits."""

    temperature: torch.Tensor  # fp32; 1 where a row is greedy
    top_k: torch.Tensor  # int64, from 1 to the vocabulary's size
    top_p: torch.Tensor  # fp32, above 0
    repetition_penalty: torch.Tensor  # fp32
    seed: torch.Tensor  # int64
    greedy: torch.Tensor  # bool


def sampling_rows(settings: Sequence[Sampling], vocabulary: int, device: torch.device | str = "cpu") -> SamplingRows:
    """`settings` as tensors; what is off gets the value that changes nothing."""

    def column(values: list, dtype: torch.dtype) -> torch.Tensor:
        return torch.tensor(values, dtype=dtype, device=device)

    return SamplingRows(
        temperature=column([1.0 if one.is_greedy else one.temperature for one in settings], torch.float32),
        top_k=column([min(one.top_k or vocabulary, vocabulary) for one in settings], torch.int64),
        top_p=column([one.top_p or 1.0 for one in settings], torch.float32),
        repetition_penalty=column([one.repetition_penalty for one in settings], torch.float32),
        seed=column([one.seed % (1 << 63) for one in settings], torch.int64),
        greedy=column([one.is_greedy for one in settings], torch.bool),
    )


def penalized(logits: torch.Tensor, seen: torch.Tensor, penalty: torch.Tensor) -> torch.Tensor:
    """Logits [B, V], lower for tokens that were `seen` (bool [B, V]).

    There positive logits are divided by the row's penalty [B], negative ones multiplied by it.
    """
    factor = penalty[:, None]
    return torch.where(seen, torch.where(logits > 0, logits / factor, logits * factor), logits)


def most_probable(logits: torch.Tensor) -> torch.Tensor:
    """The token with the largest logit of each row, the first of equal ones: [B, V] → int64 [B]."""
    return logits.argmax(dim=-1)


def probabilities(logits: torch.Tensor, rows: SamplingRows) -> tuple[torch.Tensor, torch.Tensor]:
    """(probabilities, tokens), both [B, V], from the most probable token down, after temperature, top-k and top-p.

    As in transformers, tokens that equal the k-th largest logit all stay, and top-p keeps a token if those above it
    have less than `top_p` together. So the most probable token always stays.
    """
    ordered, tokens = (logits / rows.temperature[:, None]).sort(dim=-1, descending=True, stable=True)
    least = ordered.gather(1, rows.top_k[:, None] - 1)
    ordered = ordered.masked_fill(ordered < least, -float("inf"))
    found = ordered.softmax(dim=-1)
    above = found.cumsum(dim=-1) - found
    found = found.masked_fill(above >= rows.top_p[:, None], 0.0)
    # Of a row whose first token has all of top_p, rounding could take that token too.
    found[:, 0].clamp_(min=torch.finfo(found.dtype).tiny)
    return found / found.sum(dim=-1, keepdim=True), tokens


def draw(found: torch.Tensor, tokens: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Tokens [B] where the sum of probabilities [B, V] from the left first exceeds `uniform` [B], in [0, 1)."""
    sums = found.cumsum(dim=-1)
    place = (sums <= uniform[:, None] * sums[:, -1:]).sum(dim=-1, keepdim=True)
    last = ((found > 0).sum(dim=-1, keepdim=True) - 1).clamp(min=0)  # of NaN none is above 0
    return tokens.gather(1, torch.minimum(place, last)).squeeze(1)


def uniform_numbers(seed: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    """fp32 [B] in [0, 1), a function of seed and position alone (int64 [B]): the 24 highest bits of a mix of both.

    So an answer does not depend on what runs beside it, nor on whether it was begun anew. The mix is the finalizer of
    splitmix64 (Steele, Lea & Flood 2014, "Fast splittable pseudorandom number generators"), applied twice.
    """
    state = _mixed(seed + _signed(0x9E3779B97F4A7C15)) + position * _signed(0xD1B54A32D192ED03)
    return ((_mixed(state) >> 40) & 0xFFFFFF).float() / (1 << 24)


def _mixed(x: torch.Tensor) -> torch.Tensor:
    """splitmix64's finalizer over int64, whose products wrap as unsigned ones do."""
    x = (x ^ _shifted(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shifted(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shifted(x, 31)


def _shifted(x: torch.Tensor, places: int) -> torch.Tensor:
    """Shifted to the right with zeros coming in; `>>` alone repeats the sign."""
    return (x >> places) & (_WORD >> places)


def _signed(word: int) -> int:
    return word - (1 << 64) if word >> 63 else word


def choose(logits: torch.Tensor, rows: SamplingRows, seen: torch.Tensor | None, position: torch.Tensor) -> torch.Tensor:
    """The next token of each row: logits fp32 [B, V] → int64 [B].

    Args:
        seen: bool [B, V], the tokens that a repetition penalty is for; None: no row has one.
        position: int64 [B], the new token's place in its sequence.
    """
    if seen is not None:
        logits = penalized(logits, seen, rows.repetition_penalty)
    drawn = draw(*probabilities(logits, rows), uniform_numbers(rows.seed, position))
    return torch.where(rows.greedy, most_probable(logits), drawn)
