"""The weight-gradient product that megatron-core's linear layers call; it replaces Apex's CUDA extension.

The first micro-batch of a step writes the fp32 buffer, every other adds to it: `mark_stale` says where a step begins,
and saves one pass of zeros over all gradients and one of reading them.
"""

from __future__ import annotations

import torch

from megatron_patch.kernels.grad_accumulation import accumulate_weight_grad


def mark_stale(main_grad: torch.Tensor) -> None:
    """The next product overwrites `main_grad` instead of adding to what a previous step left there."""
    main_grad.is_stale = True


def is_stale(main_grad: torch.Tensor) -> bool:
    return getattr(main_grad, "is_stale", False)


def wgrad_gemm_accum_fp32(total_input: torch.Tensor, grad_output: torch.Tensor, main_grad: torch.Tensor) -> None:
    """`main_grad` [out, in] fp32 (+)= `grad_output` [tokens, out] transposed times `total_input` [tokens, in]."""
    overwrite = is_stale(main_grad)
    main_grad.is_stale = False
    accumulate_weight_grad(main_grad, total_input, grad_output, overwrite=overwrite)


def direct_main_grad(weight: torch.nn.Parameter) -> torch.Tensor | None:
    """The fp32 gradient that core's DDP keeps for `weight`, for a backward pass that adds to it; DDP, told so, does not.

    None where there is no such buffer or nothing is learnt: autograd then carries the gradient as usual.
    """
    main_grad = getattr(weight, "main_grad", None)
    if main_grad is None or not torch.is_grad_enabled():
        return None
    weight.grad_added_to_main_grad = True
    return main_grad
