"""Forward and backward of micro-batches as CUDA graphs: one launch replaces a few thousand.

At micro-batch 1 the GPU computes a 7B model's forward pass faster than Python launches its kernels, and a model split
over two GPUs much faster. So a run records up to three graphs:

- one for the micro-batch that opens a step; its products overwrite the gradient buffer;
- one for the micro-batches that add to that buffer;
- on several GPUs one for the last micro-batch, which also reduces the gradients; NCCL's kernels are recorded with the
  rest.

All three share one memory pool, since only one runs at a time and leaves nothing for the next. Where memory allows, two
or four micro-batches go through the model at once. A pipeline stage records other passes (pipeline.py).
`why_no_graphs` says which runs record none.
"""

from __future__ import annotations

import megatron_patch.core.device as device

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import torch

from megatron_patch.config import TrainConfig
from megatron_patch.core import parallel
from megatron_patch.data.batches import Batch
from megatron_patch.kernels._cublaslt import Shape
from megatron_patch.kernels.attention import forget_segments
from megatron_patch.kernels.products import noting
from megatron_patch.plan.passes import choose_pass

# (batch, closes) → fp64 [2]: the summed losses and the number of tokens. Runs forward and backward, and with `closes`
# also the reductions of a step's gradients.
Work = Callable[[Batch, bool], torch.Tensor]
Result = TypeVar("Result")
# Measures products of these shapes, on every rank at the same time.
Tune = Callable[[Iterable[Shape]], None]

# Share of a GPU's memory that must stay free beside several micro-batches: fragments, and what libraries load later.
_SPARE = 0.0125


def why_no_graphs(config: TrainConfig) -> str:
    """Why this run's micro-batches cannot be recorded as graphs, as one phrase; empty if they can."""
    obstacles = {
        "there is no GPU": not device.HAS_CUDA,
        "--cuda-graphs false": not config.options.cuda_graphs,
    }
    return ", ".join(obstacle for obstacle, there in obstacles.items() if there)


class MicroBatchGraphs:
    """A run's graphs, and the number of micro-batches that one of them computes.

    The first step is launched kernel by kernel, because the matrix products choose their algorithms in it. The second
    step records the graphs; every later step replays them.

    The loss is a sum over tokens. So several micro-batches in one pass give the same gradient as one after the other.
    The products are larger, and the fp32 gradients are read and written less often.

    Args:
        work: runs one batch forward and backward.
        reduces: whether the pass that closes a step reduces gradients over ranks, and so needs a graph of its own.
        tune: what the ranks do together with the shapes of products that the first pass has met; None: each product is
            measured when it first comes.
    """

    def __init__(self, work: Work, reduces: bool, tune: Tune | None = None) -> None:
        self.work = work
        self.reduces = reduces
        self.tune = tune
        self.together = 1  # micro-batches in a pass
        self.keeping = 0  # layers that keep what they would compute again
        self.decision = ""  # a sentence for the log about `together`
        self.launched = False  # whether a whole step was launched, so that the products have chosen their algorithms
        # (opens, closes) → the graph, the batch whose memory it reads, and the sums that it writes
        self.captured: dict[tuple[bool, bool], tuple[torch.cuda.CUDAGraph, Batch, torch.Tensor]] = {}

    def join_what_fits(self, sizes: Sequence[int], training: int, evaluation: int, layers: int = 0, kept: int = 0) -> None:
        """Run several micro-batches in a pass from now on, as many as every rank has the memory for (`choose_pass`).

        Args:
            sizes: of a pass that may be (`pass_sizes`).
            training: bytes that one micro-batch takes forward and backward, beside what is allocated now.
            evaluation: bytes that one takes forward only. Graphs keep their memory, so an evaluation needs its own.
            layers: that compute something again in their backward pass.
            kept: bytes that one layer needs to keep it, of a micro-batch.
        """
        left, total = device.memory_left()

        def needed(size: int, keeping: int, spares: int) -> int:
            return size * (training + keeping * kept) + evaluation + spares * int(_SPARE * total)

        self.together, self.keeping = choose_pass(sizes, layers, lambda *asked: not parallel.any_rank(needed(*asked) > left))
        asked = max(self.together, min(sizes))  # where one goes, what the fewest would have taken
        least = needed(asked, 0, 1)
        memory = f"{asked} need {least / 2**30:.1f} GiB, and {left / 2**30:.1f} GiB are left"
        if self.together == 1 and least <= left:
            memory += " here, too little elsewhere"
        number = "one micro-batch goes" if self.together == 1 else f"{self.together} micro-batches go"
        self.decision = f"{number} through the model in one pass: {memory}"

    def run(self, batches: Iterator[Batch], count: int) -> torch.Tensor:
        """Run a step's `count` micro-batches; the first pass overwrites the gradients, later ones add.

        Returns fp64 [2]: the summed losses and the number of tokens, of this rank.
        """
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
        """Run one pass without a graph: Python launches each kernel. Returns as `run`."""
        return self.work(_joined(group), closes)

    def close(self) -> None:
        """Drop the graphs. Call before NCCL's communicators are destroyed: the graphs use them."""
        self.captured.clear()

    def _replay(self, group: list[Batch], opens: bool, closes: bool) -> torch.Tensor:
        """Replay the graph of a pass, which the first call records. Returns as `run`."""
        if (opens, closes) not in self.captured:
            self.captured[opens, closes] = self._capture(group, closes)
        graph, static, sums = self.captured[opens, closes]
        # A graph reads the addresses that it was recorded with, so the batch is copied there.
        for key, whole in static.items():
            for place, batch in zip(whole.chunk(self.together), group):
                place.copy_(batch[key], non_blocking=True)
        graph.replay()
        return sums

    def _capture(self, group: list[Batch], closes: bool) -> tuple[torch.cuda.CUDAGraph, Batch, torch.Tensor]:
        """Record a pass over `group`. Returns the graph, the batch that it reads, and the sums that it writes."""
        static = _joined(group)  # this batch's memory is what the graph reads in every later step
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
    """Record the kernels that `work` launches as a graph, with memory from `pool` (None: from a new pool).

    Returns the graph and what `work` returned. Recording computes nothing: the returned tensors hold values only after
    the first replay. Python's side of `work` has run, though, so gradients are already marked as written. A replay's
    results stay valid until another graph of the same pool runs, because that graph may use the same memory.
    """
    torch.cuda.empty_cache()
    forget_segments()
    graph = torch.cuda.CUDAGraph()
    # If `work` fails, torch raises a second error for the unfinished recording, with the first one as its context.
    recording = torch.cuda.graph(graph, pool=pool, stream=torch.cuda.current_stream(), capture_error_mode="thread_local")
    with parallel.without_random_streams(), recording:
        result = work()
    return graph, result


def _joined(group: list[Batch]) -> Batch:
    """Join micro-batches of [B, S] rows into one batch of [n · B, S] on the device."""
    local = device.local_device()
    return {key: torch.cat([batch[key].to(local, non_blocking=True) for batch in group]) for key in group[0]}
