"""core's parallel linear layers, with products whose algorithm is measured; kernels/products.py says why.

A layer's weight gradient goes straight into DDP's fp32 buffer, and the communication of its input's gradient runs
beside that product.
"""

from __future__ import annotations

import megatron_patch.core.device  # noqa: F401  prepares megatron-core for this machine

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from torch import distributed
from torch.distributed import ProcessGroup

from megatron_patch.core.weight_gradients import add_weight_gradient
from megatron_patch.kernels.products import matmul


class _Linear(torch.autograd.Function):
    """x [..., in], weight [out, in] → [..., out]. The weight's gradient goes into its fp32 `main_grad` [out, in].

    Without a `group` it is a layer that does not communicate. With one, each rank of the tensor-parallel group has some
    rows of the weight, and the input's gradients are summed over the group while the weight's is computed.

    split: x is this rank's part of the sequence, [S / TP, B, in]. It is gathered for the product, and gathered again in
    the backward pass, because keeping the whole sequence would take TP times the memory. Otherwise x is whole and the
    same on all ranks.
    """

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, main_grad: torch.Tensor, group: ProcessGroup | None, split: bool
    ) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        ctx.main_grad, ctx.group, ctx.split = main_grad, group, split
        whole = x
        if split:
            assert group is not None, "a sequence is split over a group"
            whole = _gather(x, group, beside=False).tensor
        y = whole.new_empty(*whole.shape[:-1], weight.size(0))
        matmul(_flat(whole), weight.t(), _flat(y))
        return y

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        # The gathering runs beside the product for dx, which does not need x.
        whole = _gather(x, ctx.group, beside=True) if ctx.split else _Arriving(x)
        dy, dx = dy.contiguous(), torch.empty_like(whole.tensor)
        matmul(_flat(dy), weight, _flat(dx))
        flat = _flat(whole.get())
        # The sum over ranks runs beside the product for the weight's gradient, which does not need dx.
        sums = _Arriving(dx) if ctx.group is None else _sum(dx, x, ctx.group, ctx.split)
        counted = add_weight_gradient(weight, flat, _flat(dy), ctx.main_grad)
        return sums.get(), counted, None, None, None


def _flat(tensor: torch.Tensor) -> torch.Tensor:
    """[S, B, width] → [S·B, width]."""
    return tensor.view(-1, tensor.size(-1))


class _Arriving(NamedTuple):
    """A tensor that a collective may still be writing."""

    tensor: torch.Tensor
    work: distributed.Work | None = None

    def get(self) -> torch.Tensor:
        """The tensor. What is launched from here on runs after it was written."""
        if self.work is not None:
            self.work.wait()
        return self.tensor


def _gather(part: torch.Tensor, group: ProcessGroup, beside: bool) -> _Arriving:
    """The whole sequence [S, B, H] from each rank's `part`; with `beside`, gathered beside what is launched next."""
    whole = part.new_empty(part.size(0) * group.size(), *part.shape[1:])
    return _Arriving(whole, distributed.all_gather_into_tensor(whole, part, group=group, async_op=beside))


def _sum(whole: torch.Tensor, part: torch.Tensor, group: ProcessGroup, split: bool) -> _Arriving:
    """The sum of `whole` [S, B, H] over the ranks. Where the sequence is `split`, only this rank's part of it."""
    if not split:
        return _Arriving(whole, distributed.all_reduce(whole, group=group, async_op=True))
    mine = torch.empty_like(part)
    return _Arriving(mine, distributed.reduce_scatter_tensor(mine, whole, group=group, async_op=True))


def _linear(core: Callable[..., torch.Tensor], input: torch.Tensor, weight: torch.Tensor, kwargs: Any) -> torch.Tensor:
    """`_Linear` where the weight has an fp32 gradient buffer; core's own function `core` everywhere else.

    Everything else is: no gradients wanted, a bias, another dtype of the buffer, or core's deferred embedding gradient.
    """
    main_grad = getattr(weight, "main_grad", None)
    fp32 = main_grad is not None and main_grad.dtype == torch.float32
    deferred = kwargs["grad_output_buffer"] is not None
    if deferred or not fp32 or not weight.requires_grad or not torch.is_grad_enabled() or kwargs["bias"] is not None:
        return core(input, weight, **kwargs)
    communicates = kwargs["allreduce_dgrad"] or kwargs["sequence_parallel"]
    group = kwargs["tp_group"] if communicates else None
    return _Linear.apply(input.contiguous(), weight, main_grad, group, kwargs["sequence_parallel"])


class ColumnLinear(ColumnParallelLinear):
    """Linear layer whose weight [out, in] is split over TP by its output."""

    def _forward_impl(self, input: torch.Tensor, weight: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return _linear(super()._forward_impl, input, weight, kwargs)


class RowLinear(RowParallelLinear):
    """Linear layer whose weight [out, in] is split over TP by its input; core sums the ranks' outputs."""

    def _forward_impl(self, input: torch.Tensor, weight: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return _linear(super()._forward_impl, input, weight, kwargs)
