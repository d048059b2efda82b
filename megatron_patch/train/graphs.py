"""Forward and backward of micro-batches as CUDA graphs: one launch in the place of a few thousand.

A 7B model's forward pass at micro-batch 1 is shorter on the GPU than Python takes to launch it, and split over two GPUs
much shorter. A graph is captured for the micro-batches that open a step, whose products overwrite the gradient buffer, one
for those that add to it, and on several GPUs one for the last, during which gradients are reduced; all draw on one memory
pool, and NCCL's kernels are recorded with the others. Where memory allows, two micro-batches go through at once. Pipeline
stages have passes of their own, in pipeline.py; `why_no_graphs` says what cannot be recorded.
"""

from __future__ import annotations

import megatron_patch.core.device as device

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import torch

from megatron_patch.config import TrainConfig
from megatron_patch.core import parallel
from megatron_patch.core.parallel import Layout
from megatron_patch.data.batches import Batch
from megatron_patch.kernels._cublaslt import Shape
from megatron_patch.kernels.products import noting

# Forward and backward of a batch, and if told so that it closes the step, the reductions: losses and tokens summed, fp64 [2].
Work = Callable[[Batch, bool], torch.Tensor]
Result = TypeVar("Result")
# Measures products of these shapes, on every rank at the same time.
Tune = Callable[[Iterable[Shape]], None]

# Of a GPU's memory, what stays free beside two micro-batches: fragments, and what libraries load later.
_SPARE = 0.0125


def why_no_graphs(config: TrainConfig, layout: Layout) -> str:
    """The reasons why this run's micro-batches cannot be recorded as graphs; empty if they can."""
    obstacles = {
        "there is no GPU": not device.HAS_CUDA,
        "--cuda-graphs false": not config.options.cuda_graphs,
        "several nodes": not layout.is_one_node,
        "--packing": config.options.packing,
    }
    return ", ".join(obstacle for obstacle, there in obstacles.items() if there)


class MicroBatchGraphs:
    """The graphs of a run, captured in its second step, and how many micro-batches go through one of them at once.

    The loss is a sum over tokens, so two micro-batches in one pass give the same gradient as one after the other, from larger
    products and with half the traffic of fp32 gradients.

    Args:
        reduces: whether the pass that closes a step differs from the others, since it reduces gradients over ranks.
        tune: what the ranks do together with the shapes of products that the first pass has met; None: each product is
            measured when it first comes.
    """

    def __init__(self, work: Work, reduces: bool, tune: Tune | None = None) -> None:
        self.work = work
        self.reduces = reduces
        self.tune = tune
        self.together = 1  # micro-batches in a pass
        self.decision = ""  # about that, in words
        self.launched = False  # a whole step, after which products' algorithms are chosen
        self.captured: dict[tuple[bool, bool], tuple[torch.cuda.CUDAGraph, Batch, torch.Tensor]] = {}  # by (opens, closes)

    def pair_if_it_fits(self, training: int, evaluation: int) -> None:
        """From now on two micro-batches in a pass, if every rank's memory holds them.

        Args:
            training, evaluation: bytes that one takes forward and backward, and forward only, beside what is allocated now.
                Graphs keep their memory, so an evaluation needs its own.
        """
        left, total = device.memory_left()
        needed = 2 * training + evaluation + int(_SPARE * total)
        self.together = 1 if parallel.any_rank(needed > left) else 2
        number = {1: "one micro-batch goes", 2: "two micro-batches go"}[self.together]
        memory = f"two need {needed / 2**30:.1f} GiB, and {left / 2**30:.1f} GiB are left"
        if self.together == 1 and needed <= left:
            memory += " here, too little elsewhere"
        self.decision = f"{number} through the model in one pass: {memory}"

    def run(self, batches: Iterator[Batch], count: int) -> torch.Tensor:
        """`count` micro-batches of a step, the first of which overwrite gradients: fp64 [2], losses and tokens summed."""
        sums = torch.zeros(2, dtype=torch.float64, device=device.local_device())
        for start in range(0, count, self.together):
            group = [next(batches) for _ in range(self.together)]
            opens, closes = start == 0, self.reduces and start + self.together == count
            if self.launched:
                sums += self._replay(group, opens, closes)
            elif opens and self.tune is not None:
                sums += tuned(lambda: self.launch(group, closes), self.tune)  # noqa: B023  called at once
            else:
                sums += self.launch(group, closes)
        self.launched = True
        return sums

    def launch(self, group: list[Batch], closes: bool = False) -> torch.Tensor:
        """One pass, each kernel launched from Python."""
        return self.work(_joined(group), closes)

    def close(self) -> None:
        """Let go of the graphs, before NCCL's communicators, which they use, are taken down."""
        self.captured.clear()

    def _replay(self, group: list[Batch], opens: bool, closes: bool) -> torch.Tensor:
        if (opens, closes) not in self.captured:
            self.captured[opens, closes] = self._capture(group, closes)
        graph, static, sums = self.captured[opens, closes]
        for key, whole in static.items():
            for place, batch in zip(whole.chunk(self.together), group):
                place.copy_(batch[key], non_blocking=True)
        graph.replay()
        return sums

    def _capture(self, group: list[Batch], closes: bool) -> tuple[torch.cuda.CUDAGraph, Batch, torch.Tensor]:
        static = _joined(group)
        pool = next((graph.pool() for graph, _, _ in self.captured.values()), None)
        graph, sums = record(lambda: self.work(static, closes), pool)
        return graph, static, sums


def tuned(work: Callable[[], Result], tune: Tune) -> Result:
    """`work` with torch's guess of products' algorithms; for what comes after it, they are measured."""
    with noting() as noted:
        result = work()
    tune(noted)
    return result


def record(work: Callable[[], Result], pool: Any) -> tuple[torch.cuda.CUDAGraph, Result]:
    """The kernels that `work` launches, as a graph with memory from `pool` (None: a new one), and what `work` returned.

    Nothing is computed yet, though Python has marked gradients as it will be. What the graph leaves is there until another graph
    of the pool runs: that one may have been recorded when its memory was still free.
    """
    torch.cuda.empty_cache()
    graph = torch.cuda.CUDAGraph()
    # From here on an error of `work` may come as the context of one of the recording, which it leaves unfinished.
    recording = torch.cuda.graph(graph, pool=pool, stream=torch.cuda.current_stream(), capture_error_mode="thread_local")
    with parallel.without_random_streams(), recording:
        result = work()
    return graph, result


def _joined(group: list[Batch]) -> Batch:
    """Micro-batches as one batch on the device."""
    local = device.local_device()
    return {key: torch.cat([batch[key].to(local, non_blocking=True) for batch in group]) for key in group[0]}
