"""Flags of the optimizer and of initial weights decide: steps equal those of transformers and torch's AdamW."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from megatron_patch.arguments.conversion import Conversion
from megatron_patch.checkpoint.initial_weights import load_weights
from megatron_patch.config import Options
from megatron_patch.conversion.convert import convert
from megatron_patch.llama.model_config import read_hf_config
from megatron_patch.train import optimizer as optim
from megatron_patch.train.log import RunLog
from megatron_patch.train.setup import build_state
from megatron_patch.train.step import train_step
from tests.launching import GOLDEN
from tests.tiny import tiny_config

STEPS, RATE = 6, 1e-2
# An epsilon that matters, for otherwise Adam undoes what clipping does.
USUAL = dict(weight_decay=0.1, adam_beta1=0.9, adam_beta2=0.95, adam_eps=1e-3, clip_grad=1.0)


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    target = tmp_path_factory.mktemp("megatron") / "gqa"
    convert(Conversion(GOLDEN / "hf_gqa", target, to_hf=False))
    return target


def rows(step: int) -> torch.Tensor:
    """[2, 17]: a global batch of random tokens, one of two, so that they are learnt."""
    return torch.randint(0, 800, (2, 17), generator=torch.Generator().manual_seed(step % 2))


def micro_batches(step: int) -> Iterator[dict[str, Any]]:
    for row in rows(step).split(1):
        yield {"tokens": row[:, :-1], "labels": row[:, 1:].contiguous(), "loss_mask": torch.ones(1, 16)}


def reference(*, weight_decay: float, adam_beta1: float, adam_beta2: float, adam_eps: float, clip_grad: float) -> list[float]:
    """The losses of transformers' model under torch's AdamW; norms are not decayed, and a clip of 0 is none."""
    model = AutoModelForCausalLM.from_pretrained(GOLDEN / "hf_gqa", dtype=torch.float32)
    decayed = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    norms = [parameter for parameter in model.parameters() if parameter.dim() == 1]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": norms, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(adam_beta1, adam_beta2), eps=adam_eps)
    losses = []
    for step in range(STEPS):
        logits = model(rows(step)[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows(step)[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        if clip_grad:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip_grad)
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize(
    "flag, value",
    [
        ("weight_decay", 3.0),
        ("adam_beta1", 0.2),
        ("adam_beta2", 0.3),
        ("adam_eps", 0.05),
        ("clip_grad", 0.05),
        ("clip_grad", 0.0),
    ],
)
def test_a_flag_of_the_optimizer_does_what_it_does_in_torch(alone, converted, flag, value):
    numbers = {**USUAL, flag: value}
    config = tiny_config(
        model=read_hf_config(converted), precision="fp32", lr=RATE, min_lr=RATE, options=Options(**numbers),
        use_distributed_optimizer=flag != "adam_eps",  # one of them without ZeRO
    )  # fmt: skip
    state = build_state(config, alone, RunLog(config, active=False), STEPS)
    load_weights(str(converted), state.model)
    optim.weights_were_loaded(state.optimizer)
    got = []
    for step in range(STEPS):
        got.append(train_step(state, micro_batches(step)).loss)
        state.scheduler.step(increment=1)
    wanted, without = reference(**numbers), reference(**USUAL)
    assert abs(wanted[-1] / without[-1] - 1) > 1e-3, f"{flag} {value} must matter, or agreement says little"
    assert got == pytest.approx(wanted, rel=1e-4)


def test_random_weights_scatter_as_asked_for(alone):
    config = tiny_config(precision="fp32", options=Options(init_method_std=0.1))
    state = build_state(config, alone, RunLog(config, active=False), STEPS)
    (embedding,) = [weight for name, weight in state.model.named_parameters() if name.endswith("word_embeddings.weight")]
    assert embedding.std().item() == pytest.approx(0.1, rel=0.02) and abs(embedding.mean().item()) < 1e-3
