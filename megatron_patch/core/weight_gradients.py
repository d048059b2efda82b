"""What megatron-core's linear layers call for their weights' gradients, in the place of Apex's CUDA extension.

The first micro-batch of a step writes the fp32 buffer, every other adds to it: `mark_stale` says where a step begins,
and saves one pass of zeros over all gradients and one of reading them. Inside `beside_the_backward_pass` the products run
on a stream of their own, where they fill the multiprocessors that the tails of other kernels leave idle.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from megatron_patch.kernels.grad_accumulation import accumulate_weight_grad

# Products that may be under way before the backward pass waits for the oldest: what they read stays allocated.
_IN_FLIGHT = 3


class _SideStream:
    """A stream for weight gradients, and what its unfinished products read."""

    def __init__(self) -> None:
        self.stream = torch.cuda.Stream()
        self.pending: deque[tuple[torch.cuda.Event, torch.Tensor, torch.Tensor]] = deque()

    def accumulate(self, main_grad: torch.Tensor, x: torch.Tensor, dy: torch.Tensor, overwrite: bool) -> None:
        main = torch.cuda.current_stream()
        self.stream.wait_stream(main)
        with torch.cuda.stream(self.stream):
            accumulate_weight_grad(main_grad, x, dy, overwrite=overwrite)
            done = self.stream.record_event()
        self.pending.append((done, x, dy))
        if len(self.pending) > _IN_FLIGHT:
            oldest, _, _ = self.pending.popleft()
            main.wait_event(oldest)

    def join(self) -> None:
        torch.cuda.current_stream().wait_stream(self.stream)
        self.pending.clear()


_side: _SideStream | None = None


@contextmanager
def beside_the_backward_pass() -> Iterator[None]:
    """Weight gradients asked for inside run beside what else runs; at the end all of them are done."""
    global _side
    _side = _SideStream()
    try:
        yield
        _side.join()
    finally:
        _side = None


def mark_stale(main_grad: torch.Tensor) -> None:
    """The next product overwrites `main_grad` instead of adding to what a previous step left there."""
    main_grad.is_stale = True


def is_stale(main_grad: torch.Tensor) -> bool:
    return getattr(main_grad, "is_stale", False)


def wgrad_gemm_accum_fp32(total_input: torch.Tensor, grad_output: torch.Tensor, main_grad: torch.Tensor) -> None:
    """`main_grad` [out, in] fp32 (+)= `grad_output` [tokens, out] transposed times `total_input` [tokens, in]."""
    overwrite = is_stale(main_grad)
    main_grad.is_stale = False
    if _side is None:
        accumulate_weight_grad(main_grad, total_input, grad_output, overwrite=overwrite)
    else:
        _side.accumulate(main_grad, total_input, grad_output, overwrite)
