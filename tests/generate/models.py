"""A small LLaMA with an engine around it, and transformers' own answers, for the tests of this folder."""

from __future__ import annotations

from pathlib import Path

import torch

from megatron_patch.generate.continuous_batching import Engine, Request, run_all
from megatron_patch.generate.loading import load_decoder
from megatron_patch.generate.ranks import Ranks, alone
from megatron_patch.weights.source import open_source


def engine_of(folder: Path, slots: int, longest: int, ranks: Ranks | None = None) -> Engine:
    """An engine in fp32 over the checkpoint in `folder`."""
    ranks = ranks or alone("cpu")
    return Engine(load_decoder(open_source(folder), ranks, torch.float32, slots, longest), slots, longest)


def random_prompts(count: int, vocabulary: int, shortest: int, longest: int, seed: int = 0) -> list[list[int]]:
    """`count` prompts of unequal length, token ids above the special ones."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(shortest, longest + 1, (count,), generator=generator).tolist()
    return [torch.randint(3, vocabulary, (size,), generator=generator).tolist() for size in sizes]


def greedy_answers(engine: Engine, prompts: list[list[int]], new_tokens: int) -> list[list[int]]:
    """The engine's answers in the order of the prompts."""
    answers = run_all(engine, [Request(number, tuple(prompt), new_tokens) for number, prompt in enumerate(prompts)])
    return [answers[number] for number in range(len(prompts))]


def transformers_answers(folder: Path, prompts: list[list[int]], new_tokens: int) -> list[list[int]]:
    """Greedy answers of transformers in fp32, prompts of a batch padded on the left."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    longest = max(map(len, prompts))
    made = model.generate(
        torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts]),
        attention_mask=torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]),
        max_new_tokens=new_tokens,
        min_new_tokens=new_tokens,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    return made[:, longest:].tolist()
