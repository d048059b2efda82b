"""core's parallel linear layers, with products whose algorithm is measured: kernels/products.py says why."""

from __future__ import annotations

import megatron_patch.core.device  # noqa: F401  prepares megatron-core for this machine

from collections.abc import Callable
from typing import Any

import torch
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear

from megatron_patch.core.weight_gradients import wgrad_gemm_accum_fp32
from megatron_patch.kernels.products import matmul


class _Linear(torch.autograd.Function):
    """x [..., in], weight [out, in] → [..., out]; the weight's gradient goes into its fp32 `main_grad`."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, main_grad: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        ctx.main_grad = main_grad
        y = x.new_empty(*x.shape[:-1], weight.size(0))
        matmul(x.view(-1, x.size(-1)), weight.t(), y.view(-1, y.size(-1)))
        return y

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        x, weight = ctx.saved_tensors
        dy, dx = dy.contiguous().view(-1, dy.size(-1)), torch.empty_like(x)
        flat = x.view(-1, x.size(-1))
        matmul(dy, weight, dx.view_as(flat))
        wgrad_gemm_accum_fp32(flat, dy, ctx.main_grad)
        weight.grad_added_to_main_grad = True
        # The gradient is in `main_grad` already. DDP's hook counts the gradients that are ready, and it runs only where autograd
        # is given a tensor; so it gets one, whose content nobody reads.
        return dx, torch.empty_like(weight), None


def _linear(core: Callable[..., torch.Tensor], input: torch.Tensor, weight: torch.Tensor, kwargs: Any) -> torch.Tensor:
    """`_Linear` where no communication is to overlap with the products and gradients go to fp32; else core's own."""
    communicates = kwargs["allreduce_dgrad"] or kwargs["sequence_parallel"] or kwargs["grad_output_buffer"] is not None
    main_grad = getattr(weight, "main_grad", None)
    fp32 = main_grad is not None and main_grad.dtype == torch.float32
    if communicates or not fp32 or not weight.requires_grad or not torch.is_grad_enabled() or kwargs["bias"] is not None:
        return core(input, weight, **kwargs)
    return _Linear.apply(input.contiguous(), weight, main_grad)


class ColumnLinear(ColumnParallelLinear):
    """Split over TP by output."""

    def _forward_impl(self, input: torch.Tensor, weight: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return _linear(super()._forward_impl, input, weight, kwargs)


class RowLinear(RowParallelLinear):
    """Split over TP by input."""

    def _forward_impl(self, input: torch.Tensor, weight: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return _linear(super()._forward_impl, input, weight, kwargs)
