"""Sampling against transformers' own processors, and the numbers that are drawn against their probabilities."""

from __future__ import annotations

import pytest
import torch

from megatron_patch.arguments.trained_model_rows import PENALTIES
from megatron_patch.errors import UserError
from megatron_patch.generate.sampling import Sampling, choose, draw, penalized, probabilities, sampling_rows, uniform_numbers

VOCABULARY = 200
SETTINGS = [
    Sampling(temperature=1.0),
    Sampling(temperature=0.7),
    Sampling(temperature=1.3, top_k=7),
    Sampling(temperature=1.0, top_p=0.85),
    Sampling(temperature=0.6, top_p=0.3),
    Sampling(temperature=2.0, top_k=50, top_p=0.5),
    Sampling(temperature=1.0, top_k=1000, top_p=1.0),
    Sampling(temperature=1.0, top_p=1e-6),
    Sampling(temperature=0.9, top_k=20, top_p=0.9, repetition_penalty=1.2),
    Sampling(temperature=1.0, repetition_penalty=0.5),
]


@pytest.fixture(scope="module")
def logits():
    """[B, V] with ties, so that top-k's rule for equal logits is tried too."""
    made = torch.randn(len(SETTINGS), VOCABULARY, generator=torch.Generator().manual_seed(3)) * 3
    made[2, :12] = made[2].max() + 1
    return made


def by_transformers(settings: Sampling, logits: torch.Tensor, seen: list[int]) -> torch.Tensor:
    """Probabilities [V] after transformers' processors, in the order of its `generate`."""
    from transformers import (
        LogitsProcessorList,
        RepetitionPenaltyLogitsProcessor,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    steps = LogitsProcessorList()
    if settings.repetition_penalty != 1:
        steps.append(RepetitionPenaltyLogitsProcessor(settings.repetition_penalty))
    if settings.temperature != 1:
        steps.append(TemperatureLogitsWarper(settings.temperature))
    if settings.top_k:
        steps.append(TopKLogitsWarper(settings.top_k))
    if settings.top_p:
        steps.append(TopPLogitsWarper(settings.top_p))
    return steps(torch.tensor([seen]), logits[None].clone()).softmax(-1)[0]


def test_probabilities_are_those_of_transformers(logits):
    """All rows at once, each with its own settings, and tokens seen twice."""
    tokens = torch.randint(0, VOCABULARY, (len(SETTINGS), 30), generator=torch.Generator().manual_seed(4))
    seen = torch.zeros(logits.shape, dtype=torch.bool).scatter_(1, tokens, True)
    rows = sampling_rows(SETTINGS, VOCABULARY)
    found, order = probabilities(penalized(logits, seen, rows.repetition_penalty), rows)
    ours = torch.zeros_like(found).scatter_(1, order, found)
    for row, settings in enumerate(SETTINGS):
        expected = by_transformers(settings, logits[row], tokens[row].tolist())
        torch.testing.assert_close(ours[row], expected, rtol=2e-5, atol=1e-7)


def test_draws_follow_the_probabilities():
    """Chi-square over 100,000 draws by seed and position, as an engine draws them; the bound is passed once in 10⁶ by
    chance.
    """
    settings = Sampling(temperature=1.0, top_k=20, top_p=0.95)
    line = torch.randn(1, VOCABULARY, generator=torch.Generator().manual_seed(5)) * 2
    expected = by_transformers(settings, line[0], [0])
    count = 100_000
    found, order = probabilities(line, sampling_rows([settings], VOCABULARY))
    seeds, positions = torch.arange(count) % 100, torch.arange(count) // 100
    tokens = draw(found.expand(count, -1), order.expand(count, -1), uniform_numbers(seeds, positions))
    counts = torch.bincount(tokens, minlength=VOCABULARY).double()
    possible = expected > 0
    assert counts[~possible].sum() == 0
    wanted = expected[possible].double() * count
    statistic = float(((counts[possible] - wanted) ** 2 / wanted).sum())
    freedom = torch.tensor((int(possible.sum()) - 1) / 2, dtype=torch.float64)
    by_chance = torch.special.gammaincc(freedom, torch.tensor(statistic / 2, dtype=torch.float64))
    assert by_chance > 1e-6


def test_uniform_numbers_are_those_of_splitmix64():
    """Against whole numbers of Python, which know no sign and no width."""

    def mixed(x: int) -> int:
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
        return x ^ (x >> 31)

    seeds, positions = [0, 1, 1234, 2**62 + 5], [1, 0, 77, 4095]
    expected = []
    for seed, position in zip(seeds, positions):
        state = mixed((seed + 0x9E3779B97F4A7C15) % 2**64) + position * 0xD1B54A32D192ED03
        expected.append((mixed(state % 2**64) >> 40) / 2**24)
    assert uniform_numbers(torch.tensor(seeds), torch.tensor(positions)).tolist() == expected


def test_a_greedy_row_beside_a_drawn_one(logits):
    rows = sampling_rows([Sampling(), Sampling(temperature=5.0, seed=1)], VOCABULARY)
    chosen = choose(logits[:2], rows, None, torch.tensor([3, 3]))
    assert chosen[0] == logits[0].argmax()
    assert chosen[1] != logits[1].argmax()


@pytest.mark.parametrize("temperature", [0.0, 1e-320, 1e-46, 1e-40, 1e-9, 1e-6, 1e-5])
def test_near_zero_the_most_probable_token_comes(logits, temperature):
    """In fp32 such a number is 0, or logits divided by it are infinite, and the first infinite one would come."""
    rows = sampling_rows([Sampling(temperature=temperature, top_p=0.9)] * len(logits), VOCABULARY)
    for scale in (1.0, 1e4):
        chosen = choose(logits * scale, rows, None, torch.arange(len(logits)))
        assert (logits.gather(1, chosen[:, None])[:, 0] == logits.max(1).values).all()


@pytest.mark.parametrize("penalty", [PENALTIES.least, PENALTIES.most])
def test_no_penalty_makes_logits_infinite(penalty):
    seen, rows = torch.ones(1, 3, dtype=torch.bool), sampling_rows([Sampling(repetition_penalty=penalty)], 3)
    assert penalized(torch.tensor([[1e30, -1e30, 0.0]]), seen, rows.repetition_penalty).isfinite().all()


WRONG = [
    {"temperature": -1.0},
    {"temperature": float("nan")},
    {"top_k": -2},
    {"top_p": 1.5},
    {"repetition_penalty": 1e-46},
    {"repetition_penalty": 1e300},
]


@pytest.mark.parametrize("wrong", WRONG)
def test_what_cannot_be_is_a_sentence(wrong):
    with pytest.raises(UserError, match=f"{next(iter(wrong))} is .*; it must be"):
        Sampling(**wrong)
