"""Compare steps whose passes run in the order of graphs with steps through core's schedule, in one process or several.

There is no GPU here, so a pass is launched where a graph would be replayed.
"""

from __future__ import annotations

import megatron_patch.core.device as device

import json
import math
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from megatron.core import parallel_state

from megatron_patch.config import TrainConfig
from megatron_patch.core import parallel, peer_memory, tensor_exchange
from megatron_patch.core.fp8_weights import fp8_copy
from megatron_patch.core.tensor_exchange import CollectiveExchange, CopyExchange
from megatron_patch.core.weight_gathers import WeightGathers
from megatron_patch.data.batches import Batch
from megatron_patch.kernels.fp8 import E4M3, cast
from megatron_patch.model import build
from megatron_patch.train import step as steps
from megatron_patch.train.evaluation import evaluate
from megatron_patch.train.graphs import MicroBatchGraphs, Tune, Work
from megatron_patch.train.log import RunLog
from megatron_patch.train.pipeline import PipelinePasses
from megatron_patch.train.saves import _not_finite
from megatron_patch.train.setup import build_state
from tests.tiny import tiny_batches, tiny_config


class Launched(MicroBatchGraphs):
    """`MicroBatchGraphs` that launch where they would replay; nothing is captured.

    Attributes:
        passes: for each pass the number of its samples, and whether it closes a step.
    """

    def __init__(self, work: Work, reduces: bool, tune: Tune | None = None) -> None:
        self.passes: list[tuple[int, bool]] = []
        super().__init__(self._recorded(work), reduces, tune)

    def _recorded(self, work: Work) -> Work:
        def run(batch: Batch, closes: bool) -> torch.Tensor:
            self.passes.append((len(batch["tokens"]), closes))
            return work(batch, closes)

        return run

    def _replay(self, group: list[Batch], opens: bool, closes: bool) -> torch.Tensor:
        return self.launch(group, closes)


class LaunchedStage(PipelinePasses):
    """`PipelinePasses` that launch where they would replay.

    Attributes:
        passes: for each pass the key of its graph, with places as numbers.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.passes: list[tuple[object, ...]] = []

    def _perform(self, key: tuple[object, ...], work: Any, closes: bool) -> Any:
        self.passes.append(tuple(self.slots.index(part) if part in self.slots else part for part in key))
        result, later = work()
        return result, lambda: self._later(later, closes)


def rows(seed: int, samples: int) -> Iterator[dict[str, Any]]:
    """Micro-batches of one sample each; sample i has 16 − 3 i learnt tokens, so that a mean of means would show."""
    for sample, batch in enumerate(tiny_batches(seed, samples)):
        yield {**batch, "loss_mask": (torch.arange(16) >= 3 * sample).int()[None]}


def two_steps(config: TrainConfig, layout: parallel.Layout) -> tuple[list[steps.StepResult], steps.TrainState]:
    """(the results of two steps, the state afterwards).

    The steps run in passes if the caller has set `device.HAS_CUDA` and put `Launched` in the place of the graphs.
    """
    parallel.seed_everything(1)
    state, results = build_state(config, layout, RunLog(config, active=False), 4), []
    for number in range(2):
        here = list(rows(number, config.global_batch_size))[layout.data_parallel_rank :: layout.data_parallel_size]
        batches = iter(here)
        results.append(steps.train_step(state, batches))
        assert next(batches, None) is None
        state.scheduler.step(increment=1)
    return results, state


# The passes of two stages and four micro-batches, in the order of 1F1B: forward by place, backward by (place, opens,
# closes).
_FIRST_STAGE = [("forward", 0), ("forward", 1), (0, True, False), ("forward", 0), (1, False, False), ("forward", 1),
                (0, False, False), (1, False, True)]  # fmt: skip
_LAST_STAGE = [(0, True, False), (0, False, False), (0, False, False), (0, False, True)]


def assert_passes(state: steps.TrainState, layout: parallel.Layout) -> None:
    """Check the passes of two steps: which samples went together, and that the closing pass reduces gradients."""
    pipeline = state.config.pipeline_model_parallel_size
    if pipeline == 1:
        count = 8 // layout.data_parallel_size
        size = 4 if count >= 4 else 2
        step = [(size, False)] * (count // size - 1) + [(size, True)]
        assert state.graphs.passes == [(1, True), *step * 2], state.graphs.passes
    elif pipeline == 2 and layout.data_parallel_size == 2:
        assert state.graphs.passes == (_FIRST_STAGE if layout.is_first_stage else _LAST_STAGE) * 2, state.graphs.passes
    if layout.data_parallel_size > 1 and state.config.use_distributed_optimizer:
        assert len(state.gathers.pending) == len(state.model.bucket_groups), "gathered before a forward pass waits for it"
    if layout.data_parallel_size > 1:
        assert not any(group.is_first_batch for group in state.model.bucket_groups), "reduced only after the backward pass"


class Spoiling(WeightGathers):
    """Gathers as late as a GPU may; and nobody may read in bf16 what is gathered in FP8."""

    lazy = True

    def start(self) -> None:
        replicas, rank = parallel_state.get_data_parallel_world_size(), parallel_state.get_data_parallel_rank()
        for group in self.in_fp8:
            for bucket in group.buckets:
                for number, part in enumerate(bucket.param_data.chunk(replicas)):
                    if number != rank:
                        part.fill_(math.nan)
        super().start()


def assert_fp8_weights(state: steps.TrainState) -> None:
    """Check that FP8 weights are the cast of the whole bf16 ones, and that who reads these gathers them first."""
    copies = {weight: fp8_copy(weight) for weight in state.fused if fp8_copy(weight) is not None}
    spoilt = [weight.detach().isnan() for weight in copies]
    assert any(mask.any() and not mask.all() for mask in spoilt), "a weight's parts are two ranks'"
    assert not _not_finite(state), "who looks through the weights has all of them"
    for weight, copy in copies.items():
        for mine, wanted in zip(copy, cast(weight.detach(), E4M3), strict=True):
            assert torch.equal(mine.view(torch.uint8), wanted.view(torch.uint8))
    state.gathers.start()
    sums = evaluate(state, iter(rows(5, state.config.global_batch_size)), 1)
    assert sums is not None and sums.isfinite().all() and not _not_finite(state), "an evaluation's products are bf16 ones"


def main(changed: str, copies: bool) -> None:
    """Raises AssertionError if the two ways differ. Gradients are reduced while the backward pass runs, as on GPUs.

    With `copies` ranks read each other's memory in the second way.
    """
    overlapped = build.ddp_config
    # Small buckets: some have weights of one kind alone, and some weights two ranks.
    build.ddp_config = lambda *run: replace(overlapped(*run), overlap_grad_reduce=run[1] > 1, bucket_size=100_000)
    config = tiny_config(**{"global_batch_size": 8, "precision": "fp32", **json.loads(changed)})
    config = replace(config, options=replace(config.options, peer_copies=copies))
    layout = parallel.start(config)
    wanted, _ = two_steps(config, layout)
    device.memory_left = lambda: (1 << 30, 1 << 30)
    tensor_exchange.close()
    peer_memory.on_cpus = copies
    steps.optim.WeightGathers = Spoiling
    steps.why_no_graphs, steps.MicroBatchGraphs, steps.PipelinePasses = lambda *_: "", Launched, LaunchedStage
    begun, begin = [], tensor_exchange.begin_pass
    tensor_exchange.begin_pass = lambda: begun.append(begin())
    got, state = two_steps(config, layout)
    assert_passes(state, layout)
    if state.gathers is not None and config.precision == "fp8":
        assert_fp8_weights(state)
    assert len(begun) >= len(state.graphs.passes), "recorded passes follow each other in any order"
    used = [type(exchange) for exchange in tensor_exchange._exchanges.values()]
    assert used == [CopyExchange if copies else CollectiveExchange] * int(config.sequence_parallel), used
    assert (state.reductions is not None) == (copies and layout.data_parallel_size > 1)
    for ours, theirs in zip(got, wanted, strict=True):
        assert ours.tokens == theirs.tokens
        assert ours.tokens == 16 + 13 + 10 + 7 + 4 + 1
        # Two micro-batches of a pass have one FP8 factor.
        alike = config.precision != "fp8" or config.pipeline_model_parallel_size > 1
        assert math.isclose(ours.loss, theirs.loss, rel_tol=1e-6 if alike else 1e-3)
        assert math.isclose(ours.grad_norm, theirs.grad_norm, rel_tol=1e-5 if alike else 3e-2)
    state.close()
    parallel.stop()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2] == "copies")
