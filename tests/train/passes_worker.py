"""Steps whose passes are launched as graphs would be, beside steps through core's schedule; alone, or one of two processes."""

from __future__ import annotations

import megatron_patch.core.device as device

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from megatron_patch.config import TrainConfig
from megatron_patch.core import parallel
from megatron_patch.data.loading import Batch
from megatron_patch.model import build
from megatron_patch.train import step as steps
from megatron_patch.train.graphs import MicroBatchGraphs
from megatron_patch.train.log import RunLog
from megatron_patch.train.setup import build_state
from tests.tiny import tiny_batches, tiny_config


class Launched(MicroBatchGraphs):
    """Graphs whose replays are launches, so that nothing is captured."""

    def _replay(self, group: list[Batch], opens: bool, closes: bool) -> torch.Tensor:
        return self.launch(group, closes)


def rows(seed: int, samples: int) -> Iterator[dict[str, Any]]:
    """Samples of unequal numbers of learnt tokens, 16 - 3 i."""
    for sample, batch in enumerate(tiny_batches(seed, samples)):
        yield {**batch, "loss_mask": (torch.arange(16) >= 3 * sample).int()[None]}


def two_steps(
    config: TrainConfig, layout: parallel.Layout, graphs: bool
) -> tuple[list[steps.StepResult], list[tuple[int, bool]]]:
    """Their results; and of each pass, how many samples went through it and whether it was the one that closes a step."""
    parallel.seed_everything(1)
    state, passes = build_state(config, layout, RunLog(config, active=False), 4), []

    def work(batch: Batch, closes: bool) -> torch.Tensor:
        passes.append((len(batch["tokens"]), closes))
        return steps._forward_backward(state, batch, closes)

    state.graphs = Launched(work, reduces=layout.world_size > 1) if graphs else None
    results = []
    for number in range(2):
        here = list(rows(number, config.global_batch_size))[layout.data_parallel_rank :: layout.data_parallel_size]
        batches = iter(here)
        results.append(steps.train_step(state, batches))
        assert next(batches, None) is None
        state.scheduler.step(increment=1)
    return results, passes


def main(changed: str) -> None:
    """Raises where the two ways differ; gradients are reduced while the backward pass runs, as on GPUs."""
    overlapped = build.ddp_config
    build.ddp_config = lambda config, size: replace(overlapped(config, size), overlap_grad_reduce=size > 1)
    device.memory_left = lambda: (1 << 30, 1 << 30)
    config = tiny_config(global_batch_size=8, precision="fp32", **json.loads(changed))
    layout = parallel.start(config)
    got, passes = two_steps(config, layout, graphs=True)
    wanted, _ = two_steps(config, layout, graphs=False)
    number = 8 // layout.data_parallel_size // 2
    assert passes == [(1, False), *([(2, False)] * (number - 1) + [(2, True)]) * 2], passes
    for ours, theirs in zip(got, wanted, strict=True):
        assert ours.tokens == theirs.tokens == 16 + 13 + 10 + 7 + 4 + 1
        assert abs(ours.loss / theirs.loss - 1) < 1e-6 and abs(ours.grad_norm / theirs.grad_norm - 1) < 1e-5, (ours, theirs)
    parallel.stop()


if __name__ == "__main__":
    main(sys.argv[1])
