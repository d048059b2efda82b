"""core's parallel linear layers, with products whose algorithm is measured; kernels/products.py says why.

A layer's weight gradient goes straight into DDP's fp32 buffer. Communication runs while products do: the sum of the
input's gradient here, and under sequence parallelism what core/tensor_exchange.py exchanges.
"""

from __future__ import annotations

import megatron_patch.core.device  # noqa: F401  prepares megatron-core for this machine

from collections.abc import Callable
from typing import Any

import torch
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from torch import distributed
from torch.distributed import ProcessGroup

from megatron_patch.core.tensor_exchange import Exchange, exchange_of
from megatron_patch.core.weight_gradients import add_weight_gradient
from megatron_patch.kernels.products import matmul, rows_of
from megatron_patch.model.fp8_linear import column_product, row_product, takes_fp8


class _Linear(torch.autograd.Function):
    """x [..., in], weight [out, in] → [..., out]. The weight's gradient goes into its fp32 `main_grad` [out, in].

    Without a `group` the layer does not communicate. With a `group` of tensor-parallel ranks x is the same on all of
    them, and each has some rows of the weight. Then the input's gradients are summed over the group while the weight's
    gradient is computed.
    """

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, main_grad: torch.Tensor, group: ProcessGroup | None
    ) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        ctx.main_grad, ctx.group = main_grad, group
        y = x.new_empty(*x.shape[:-1], weight.size(0))
        matmul(rows_of(x), weight.t(), rows_of(y))
        return y

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        dy, dx = dy.contiguous(), torch.empty_like(x)
        matmul(rows_of(dy), weight, rows_of(dx))
        summing = None if ctx.group is None else distributed.all_reduce(dx, group=ctx.group, async_op=True)
        counted = add_weight_gradient(weight, rows_of(x), rows_of(dy), ctx.main_grad)
        if summing is not None:
            summing.wait()
        return dx, counted, None, None


class _GatheredLinear(torch.autograd.Function):
    """x [S / TP, B, in], this rank's part of the sequence, weight [out / TP, in] → [S, B, out / TP] of all of it."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, main_grad: torch.Tensor, exchange: Exchange, ranks: int
    ) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        ctx.main_grad, ctx.exchange = main_grad, exchange
        y = x.new_empty(x.size(0) * ranks, x.size(1), weight.size(0))
        exchange.gather(rows_of(x), lambda rows, whole: _into(rows_of(y)[rows], whole, weight.t()), keeps=False)
        return y

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        gathered = ctx.exchange.begin_gather(rows_of(x))
        dy = rows_of(dy.contiguous())
        room = ctx.exchange.room(dy.size(0), x.size(2), x)
        matmul(dy, weight, room.own)
        whole = gathered.get()
        sums = ctx.exchange.begin_sum(room)
        counted = add_weight_gradient(weight, whole, dy, ctx.main_grad)
        return sums.get().view_as(x), counted, None, None, None


class _SummedLinear(torch.autograd.Function):
    """x [S, B, in / TP] and weight [out, in / TP] → this rank's part [S / TP, B, out] of the ranks' sum."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, main_grad: torch.Tensor, exchange: Exchange) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        ctx.main_grad, ctx.exchange = main_grad, exchange
        flat = rows_of(x)
        product = lambda rows, out: _into(out, flat[rows], weight.t())  # noqa: E731
        sums = exchange.sum(product, len(flat), weight.size(0), like=x, depth=weight.size(1))
        return sums.view(-1, x.size(1), weight.size(0))

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        dx = torch.empty_like(x)
        into = rows_of(dx)
        whole = ctx.exchange.gather(rows_of(dy.contiguous()), lambda rows, part: _into(into[rows], part, weight), keeps=True)
        counted = add_weight_gradient(weight, rows_of(x), whole, ctx.main_grad)
        return dx, counted, None, None


def _into(out: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> None:
    matmul(a, b, out)


def _fp32_gradient(weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor | None:
    """Where this module's functions add the weight's gradient; None where core's own function is to compute."""
    main_grad = getattr(weight, "main_grad", None)
    if main_grad is None or main_grad.dtype != torch.float32 or not weight.requires_grad or not torch.is_grad_enabled():
        return None
    return main_grad if bias is None else None


def _linear(core: Callable[..., torch.Tensor], input: torch.Tensor, weight: torch.Tensor, kwargs: Any) -> torch.Tensor:
    main_grad = _fp32_gradient(weight, kwargs["bias"])
    if main_grad is None or kwargs["grad_output_buffer"] is not None:
        return core(input, weight, **kwargs)
    group = kwargs["tp_group"]
    if kwargs["sequence_parallel"]:
        return _GatheredLinear.apply(input.contiguous(), weight, main_grad, exchange_of(group), group.size())
    return _Linear.apply(input.contiguous(), weight, main_grad, group if kwargs["allreduce_dgrad"] else None)


class ColumnLinear(ColumnParallelLinear):
    """Linear layer whose weight [out, in] is split over TP by its output."""

    def forward(self, input_: torch.Tensor, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
        """[S, B, in], or with sequence parallelism [S / TP, B, in] → ([S, B, out / TP]; no bias)."""
        if takes_fp8(self):
            return column_product(self, input_), None
        return super().forward(input_, *args, **kwargs)

    def _forward_impl(self, input: torch.Tensor, weight: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return _linear(super()._forward_impl, input, weight, kwargs)


class RowLinear(RowParallelLinear):
    """Linear layer whose weight [out, in] is split over TP by its input; core sums the ranks' outputs."""

    def _forward_impl(self, input: torch.Tensor, weight: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return _linear(super()._forward_impl, input, weight, kwargs)

    def forward(self, input_: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """[S, B, in / TP] → ([S, B, out], or with sequence parallelism [S / TP, B, out]; no bias)."""
        if takes_fp8(self):
            return row_product(self, input_), None
        main_grad = _fp32_gradient(self.weight, self.bias) if self.sequence_parallel else None
        if main_grad is None:
            return super().forward(input_)
        return _SummedLinear.apply(input_.contiguous(), self.weight, main_grad, exchange_of(self.tp_group)), None
