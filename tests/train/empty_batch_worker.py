"""Two global batches with one between them that has no token to learn, compared with the same two batches alone.

It runs as one process, or as one of two.
"""

from __future__ import annotations

import megatron_patch.core.device  # noqa: F401

import json
import sys
from collections.abc import Iterator
from typing import Any

import torch

from megatron_patch.config import TrainConfig
from megatron_patch.core import parallel
from megatron_patch.train import optimizer as optim
from megatron_patch.train.log import RunLog
from megatron_patch.train.setup import build_state
from megatron_patch.train.state import TrainState
from megatron_patch.train.step import train_step
from tests.tiny import tiny_batches, tiny_config


def held(state: TrainState) -> dict[str, Any]:
    """Everything that an update could change, by name: weights, moments, fp32 weights or remainders, counts."""
    adam = optim.single(state.optimizer).optimizer
    found = {f"weight {name}": value for name, value in state.model.named_parameters()}
    for number, parameter in enumerate(p for group in adam.param_groups for p in group["params"]):
        moments = adam.state.get(parameter, {})
        found |= {f"{name} {number}": moments[name] for name in sorted(moments)}
        found[f"main {number}"] = adam.remainders.get(parameter, parameter)
    found["steps"] = torch.tensor([group["step"] for group in adam.param_groups])
    scaler = getattr(optim.single(state.optimizer), "grad_scaler", None)
    found["scaler"] = torch.tensor([float(value) for value in scaler.state_dict().values()]) if scaler else torch.zeros(1)
    return {name: value.detach().clone() for name, value in found.items()}


def step(state: TrainState, layout: parallel.Layout, seed: int, learnt: bool) -> None:
    def rows() -> Iterator[dict[str, Any]]:
        for batch in list(tiny_batches(seed, 2))[layout.data_parallel_rank :: layout.data_parallel_size]:
            yield batch if learnt else {**batch, "loss_mask": torch.zeros(1, 16)}

    result = train_step(state, rows())
    assert result.tokens == (32 if learnt else 0) and not result.found_inf, result
    assert learnt or (result.loss, result.grad_norm) == (0.0, 0.0), result


def compare(config: TrainConfig, layout: parallel.Layout) -> None:
    """Raises AssertionError if the empty batch changed anything, or changed what the next batch does."""
    after = []
    for batches in ([0, None, None, 1], [0, 1]):
        parallel.seed_everything(1)
        state = build_state(config, layout, RunLog(config, active=False), 4)
        state.scheduler.step(increment=1)  # a learning rate and so a decay that would show
        for seed in batches:
            before = held(state) if seed is None else {}
            step(state, layout, 9 if seed is None else seed, learnt=seed is not None)
            same_bits(before, held(state), list(before))
        after.append(held(state))
    same_bits(*after, list(after[1]))


def same_bits(one: dict[str, Any], other: dict[str, Any], names: list[str]) -> None:
    for name in names:
        assert torch.equal(one[name].view(torch.uint8), other[name].view(torch.uint8)), name


def main(changed: str) -> None:
    config = tiny_config(precision="fp32", **json.loads(changed))
    compare(config, parallel.start(config))
    parallel.stop()


if __name__ == "__main__":
    main(sys.argv[1])
