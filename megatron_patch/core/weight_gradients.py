"""The weight-gradient product that megatron-core's linear layers call; it replaces Apex's CUDA extension.

The first micro-batch of a step writes the fp32 buffer, every other adds to it: `mark_stale` says where a step begins,
and saves one pass of zeros over all gradients and one of reading them.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator

import torch

from megatron_patch.kernels.grad_accumulation import accumulate_weight_grad

# Of weights whose gradients a backward pass leaves for later, in its order: what computes each.
Postponed = list[tuple[torch.nn.Parameter, Callable[[], None]]]
_postponed: Postponed | None = None


def mark_stale(main_grad: torch.Tensor) -> None:
    """The next product overwrites `main_grad` instead of adding to what a previous step left there."""
    main_grad.is_stale = True  # type: ignore[attr-defined]  # a mark of this module's own


def is_stale(main_grad: torch.Tensor) -> bool:
    return getattr(main_grad, "is_stale", False)


def wgrad_gemm_accum_fp32(total_input: torch.Tensor, grad_output: torch.Tensor, main_grad: torch.Tensor) -> None:
    """`main_grad` [out, in] fp32 (+)= `grad_output` [tokens, out] transposed times `total_input` [tokens, in]."""
    overwrite = is_stale(main_grad)
    main_grad.is_stale = False  # type: ignore[attr-defined]  # as above
    accumulate_weight_grad(main_grad, total_input, grad_output, overwrite=overwrite)


def direct_main_grad(weight: torch.nn.Parameter) -> torch.Tensor | None:
    """The fp32 gradient that core's DDP keeps for `weight`, for a backward pass that adds to it; DDP, told so, does not.

    None where there is no such buffer or nothing is learnt: autograd then carries the gradient as usual.
    """
    main_grad = getattr(weight, "main_grad", None)
    if main_grad is None or not torch.is_grad_enabled():
        return None
    weight.grad_added_to_main_grad = True  # type: ignore[attr-defined]  # core's mark
    return main_grad


@contextlib.contextmanager
def postponed() -> Iterator[Postponed]:
    """Meanwhile `add_weight_gradient` computes nothing, and what it would have is collected: a pipeline stage first sends its
    input's gradient to the stage before, which waits for it."""
    global _postponed
    _postponed = []
    try:
        yield _postponed
    finally:
        _postponed = None


def add_weight_gradient(
    weight: torch.nn.Parameter, total_input: torch.Tensor, grad_output: torch.Tensor, main_grad: torch.Tensor
) -> torch.Tensor:
    """`wgrad_gemm_accum_fp32`, now or later. Returns what a backward pass gives autograd for the weight's gradient: something
    that nobody reads, since DDP's hook, which counts the gradients that are ready, wants one."""
    work = functools.partial(wgrad_gemm_accum_fp32, total_input, grad_output, main_grad)
    weight.grad_added_to_main_grad = True  # type: ignore[attr-defined]  # a mark that DDP reads
    if _postponed is None:
        work()
    else:
        _postponed.append((weight, work))
    return torch.empty_like(weight)
