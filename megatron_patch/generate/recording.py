"""Work on a GPU as a CUDA graph."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch

T = TypeVar("T")


@functools.cache
def _beside(device: torch.device) -> torch.cuda.Stream:
    """Where work is launched before it is recorded. One stream for all of it, since cuBLAS keeps memory for each."""
    return torch.cuda.Stream(device)


def recorded(work: Callable[[], T], device: torch.device, pool: Any = None) -> tuple[torch.cuda.CUDAGraph, T]:
    """A graph of what `work` launches, and what it returned: tensors that hold values after a replay.

    `work` is launched once before, so that every kernel is there.

    Args:
        pool: memory for what the graph makes (`torch.cuda.graph_pool_handle`). Graphs may share one if no two of them
            run at once and each one's results are read before another one runs; None: memory of its own.
    """
    stream = _beside(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream), torch.no_grad():
        work()
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool), torch.no_grad():
        result = work()
    return graph, result
