"""Forward and backward of micro-batches as CUDA graphs: one launch in the place of a few thousand.

A 7B model's forward pass at micro-batch 1 is shorter on the GPU than Python takes to launch it. Two graphs are captured,
one for the micro-batches that open a step, whose products overwrite the gradient buffer, and one for all others, which add
to it; both draw on one memory pool. Only for a run in one process, where no communication stands between the kernels.
"""

from __future__ import annotations

import megatron_patch.core.device as device

from collections.abc import Callable, Iterator

import torch

from megatron_patch.config import TrainConfig
from megatron_patch.core.parallel import Layout
from megatron_patch.data.loading import Batch

# Fills a group of micro-batches' losses into sums [2]: forward, backward, bookkeeping.
Work = Callable[[list[Batch]], torch.Tensor]


def can_use_graphs(config: TrainConfig, layout: Layout) -> bool:
    """Whether this run's micro-batches are the same kernels every time: one GPU, fixed shapes, nothing that asks the host."""
    same_kernels = config.recompute != "full" and (config.use_flash_attn or config.recompute == "none")
    return (
        device.HAS_CUDA
        and layout.world_size == 1
        and config.options.cuda_graphs
        and same_kernels
        and not config.options.packing
    )


class MicroBatchGraphs:
    """The two graphs of a run, captured at their first use; `group` micro-batches run in one launch."""

    def __init__(self, work: Work, group: int) -> None:
        self.work = work
        self.group = group
        self.captured: dict[bool, tuple[torch.cuda.CUDAGraph, list[Batch], torch.Tensor]] = {}

    def run(self, batches: Iterator[Batch], count: int) -> torch.Tensor:
        """`count` micro-batches of a step, the first of which overwrite gradients: fp64 [2], losses and tokens summed."""
        total: torch.Tensor | None = None
        for start in range(0, count, self.group):
            group = [next(batches) for _ in range(self.group)]
            sums = self._replay(group, opens=start == 0)
            total = sums.clone() if total is None else total + sums
        assert total is not None
        return total

    def _replay(self, group: list[Batch], opens: bool) -> torch.Tensor:
        if opens not in self.captured:
            self.captured[opens] = self._capture(group)
        graph, static, sums = self.captured[opens]
        for batch, place in zip(group, static):
            for key, value in batch.items():
                place[key].copy_(value, non_blocking=True)
        graph.replay()
        return sums

    def _capture(self, group: list[Batch]) -> tuple[torch.cuda.CUDAGraph, list[Batch], torch.Tensor]:
        """Record the kernels; nothing is computed yet, though Python has marked gradients as it will be."""
        local = device.local_device()
        static = [{key: value.to(local) for key, value in batch.items()} for batch in group]
        pool = next((graph.pool() for graph, _, _ in self.captured.values()), None)
        torch.cuda.empty_cache()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool, stream=torch.cuda.current_stream(), capture_error_mode="thread_local"):
            sums = self.work(static)
        return graph, static, sums
