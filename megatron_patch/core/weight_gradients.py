"""The weight-gradient product that megatron-core's linear layers call, in the place of Apex's CUDA extension.

The first micro-batch of a step overwrites the fp32 buffer, and every other one adds to it. `mark_stale` says where a
step begins. So no pass writes zeros over all gradients, and the first products do not read them.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator

import torch

from megatron_patch.kernels.fp8 import Cast
from megatron_patch.kernels.grad_accumulation import accumulate_weight_grad
from megatron_patch.kernels.products import scaled_matmul

# What a backward pass leaves for later, in its order: weights, each with the function that computes its gradient.
Postponed = list[tuple[torch.nn.Parameter, Callable[[], None]]]
_postponed: Postponed | None = None


def mark_stale(main_grad: torch.Tensor) -> None:
    """Let the next product overwrite `main_grad`, instead of adding to what a previous step left there."""
    main_grad.is_stale = True  # type: ignore[attr-defined]  # a mark of this module's own


def is_stale(main_grad: torch.Tensor) -> bool:
    """Whether `main_grad` still holds a previous step's gradient. Whoever does not overwrite it must zero it first."""
    return getattr(main_grad, "is_stale", False)


def wgrad_gemm_accum_fp32(total_input: torch.Tensor, grad_output: torch.Tensor, main_grad: torch.Tensor) -> None:
    """`main_grad` [out, in] fp32 += `grad_output` [tokens, out] transposed times `total_input` [tokens, in].

    It is = instead of += where `main_grad` is stale. Name and arguments are those of Apex's function, which core calls.
    """
    accumulate_weight_grad(main_grad, total_input, grad_output, overwrite=begins(main_grad))


def direct_main_grad(weight: torch.nn.Parameter) -> torch.Tensor | None:
    """The fp32 gradient that core's DDP keeps for `weight`, for a backward pass that adds to it by itself.

    The weight is marked, so that DDP does not add autograd's gradient as well. None where there is no such buffer or
    gradients are off: autograd then carries the gradient as usual.
    """
    main_grad = getattr(weight, "main_grad", None)
    if main_grad is None or not torch.is_grad_enabled():
        return None
    weight.grad_added_to_main_grad = True  # type: ignore[attr-defined]  # core's mark
    return main_grad


@contextlib.contextmanager
def postponed() -> Iterator[Postponed]:
    """Inside, `add_weight_gradient` computes nothing and collects the work in the list that is yielded.

    A pipeline stage uses it to send its input's gradient first. The stage before waits for that one, and nobody waits
    for the gradients of weights.
    """
    global _postponed
    _postponed = []
    try:
        yield _postponed
    finally:
        _postponed = None


def add_weight_gradient(
    weight: torch.nn.Parameter, total_input: torch.Tensor, grad_output: torch.Tensor, main_grad: torch.Tensor
) -> torch.Tensor:
    """`wgrad_gemm_accum_fp32`, now or, inside `postponed`, later.

    Returns:
        What the backward pass gives autograd as the weight's gradient: a tensor of undefined content that nobody reads.
        autograd calls DDP's hook, which counts the gradients that are ready, only if it gets a gradient.
    """
    return add_later_or_now(weight, functools.partial(wgrad_gemm_accum_fp32, total_input, grad_output, main_grad))


def add_fp8_weight_gradient(
    weight: torch.nn.Parameter, total_input: Cast, grad_output: Cast, main_grad: torch.Tensor
) -> torch.Tensor:
    """`add_weight_gradient` of FP8 numbers, of which it reads the transposed copies."""
    return add_later_or_now(weight, functools.partial(_fp8_product, total_input, grad_output, main_grad))


def _fp8_product(total_input: Cast, grad_output: Cast, main_grad: torch.Tensor) -> None:
    """`wgrad_gemm_accum_fp32` of FP8 numbers."""
    assert total_input.turned is not None and grad_output.turned is not None
    scales = grad_output.scale, total_input.scale
    scaled_matmul(grad_output.turned, total_input.turned.t(), main_grad, *scales, add=not begins(main_grad))


def add_later_or_now(weight: torch.nn.Parameter, work: Callable[[], None]) -> torch.Tensor:
    """`add_weight_gradient` for a gradient that `work` computes and adds to the weight's `main_grad` by itself.

    `work` asks `begins` whether it overwrites.
    """
    weight.grad_added_to_main_grad = True  # type: ignore[attr-defined]  # a mark that DDP reads
    if _postponed is None:
        work()
    else:
        _postponed.append((weight, work))
    return torch.empty_like(weight)


def begins(main_grad: torch.Tensor) -> bool:
    """Whether whoever adds to `main_grad` now is the step's first and overwrites it; from then on it is not stale."""
    overwrite = is_stale(main_grad)
    main_grad.is_stale = False  # type: ignore[attr-defined]  # as above
    return overwrite
