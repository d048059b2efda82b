"""The products of a linear layer in FP8: linear.py's three functions with factors of 8 bits.

Activations and weights are E4M3. What a product gives is bf16, but for weight gradients, which are added to DDP's fp32
buffer as always. A matrix is cast where a product needs it, with the factor of its own largest number (kernels/fp8.py).
What is kept for the weight's gradient is the transposed FP8 copy: half the bytes that bf16 keeps.

Under sequence parallelism ranks exchange bf16 numbers and cast what has come.
"""

from __future__ import annotations

import megatron_patch.core.device  # noqa: F401  prepares megatron-core for this machine

from typing import Any

import torch
from megatron.core.tensor_parallel.mappings import reduce_from_tensor_model_parallel_region
from torch import distributed
from torch.distributed import ProcessGroup

from megatron_patch.core.fp8_weights import fp8_copy
from megatron_patch.core.tensor_exchange import Exchange, exchange_of
from megatron_patch.core.weight_gradients import add_fp8_weight_gradient
from megatron_patch.kernels.fp8 import E4M3, E5M2, Cast, cast, noted_largest
from megatron_patch.kernels.products import rows_of, scaled_matmul

# Of gradients: their numbers differ by more powers of two than activations do, and E5M2 has more of them.
GRADIENTS = E5M2


def takes_fp8(layer: torch.nn.Module) -> bool:
    """Whether a layer's products are FP8 ones: in training, also in the first forward pass of AC full.

    Evaluations measure the weights that are saved, in bf16.
    """
    return layer.training and isinstance(layer.weight, torch.Tensor) and fp8_copy(layer.weight) is not None


def column_product(layer: Any, x: torch.Tensor) -> torch.Tensor:
    """The forward pass of core's ColumnParallelLinear: x [S, B, in] → [S, B, out / TP]."""
    weight, group, keeps = layer.weight, layer.tp_group, torch.is_grad_enabled()
    if layer.sequence_parallel:
        return _GatheredLinear.apply(x.contiguous(), weight, weight.main_grad, exchange_of(group), group.size())
    return _Linear.apply(x.contiguous(), weight, weight.main_grad, group if layer.allreduce_dgrad else None, keeps)


def row_product(layer: Any, x: torch.Tensor) -> torch.Tensor:
    """The forward pass of core's RowParallelLinear: x [S, B, in / TP] → [S, B, out], the ranks' sum."""
    weight, group, keeps = layer.weight, layer.tp_group, torch.is_grad_enabled()
    if layer.sequence_parallel:
        return _SummedLinear.apply(x.contiguous(), weight, weight.main_grad, exchange_of(group), keeps)
    partial = _Linear.apply(x.contiguous(), weight, weight.main_grad, None, keeps)
    # core's function would hand a gradient on as another tensor, on which its largest number is not noted.
    return partial if group.size() == 1 else reduce_from_tensor_model_parallel_region(partial, group=group)


class _Linear(torch.autograd.Function):
    """x [..., in], weight [out, in] → [..., out], as `_Linear` of linear.py.

    `keeps`: whether a backward pass will come.
    """

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, main_grad: torch.Tensor, group: ProcessGroup | None, keeps: bool
    ) -> torch.Tensor:
        numbers = cast(rows_of(x), E4M3, turned=keeps, cells=noted_largest(x))
        y = x.new_empty(*x.shape[:-1], weight.size(0))
        multiply(numbers, weight, rows_of(y))
        _keep(ctx, numbers, weight)
        ctx.main_grad, ctx.group, ctx.shape = main_grad, group, x.shape
        return y

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight = _kept(ctx)
        numbers = cast(rows_of(dy.contiguous()), GRADIENTS, cells=noted_largest(dy))
        dx = dy.new_empty(ctx.shape)
        multiply_back(numbers, weight, rows_of(dx))
        summing = None if ctx.group is None else distributed.all_reduce(dx, group=ctx.group, async_op=True)
        counted = add_fp8_weight_gradient(weight, x, numbers, ctx.main_grad)
        if summing is not None:
            summing.wait()
        return dx, counted, None, None, None


class _GatheredLinear(torch.autograd.Function):
    """x [S / TP, B, in], weight [out / TP, in] → [S, B, out / TP], as `_GatheredLinear` there."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, main_grad: torch.Tensor, exchange: Exchange, ranks: int
    ) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        ctx.main_grad, ctx.exchange = main_grad, exchange
        y = x.new_empty(x.size(0) * ranks, x.size(1), weight.size(0))

        def use(rows: slice, whole: torch.Tensor) -> None:
            multiply(cast(whole, E4M3, turned=False), weight, rows_of(y)[rows])

        exchange.gather(rows_of(x), use, keeps=False)
        return y

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        gathered = ctx.exchange.begin_gather(rows_of(x))
        numbers = cast(rows_of(dy.contiguous()), GRADIENTS, cells=noted_largest(dy))
        room = ctx.exchange.room(dy.size(0) * dy.size(1), x.size(2), x)
        multiply_back(numbers, weight, room.own)
        whole = gathered.get()
        sums = ctx.exchange.begin_sum(room)
        counted = add_fp8_weight_gradient(weight, cast(whole, E4M3, values=False), numbers, ctx.main_grad)
        return sums.get().view_as(x), counted, None, None, None


class _SummedLinear(torch.autograd.Function):
    """x [S, B, in / TP] and weight [out, in / TP] → [S / TP, B, out], as `_SummedLinear` there."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, main_grad: torch.Tensor, exchange: Exchange, keeps: bool
    ) -> torch.Tensor:
        numbers = cast(rows_of(x), E4M3, turned=keeps, cells=noted_largest(x))
        values = numbers.values
        assert values is not None

        def produce(rows: slice, out: torch.Tensor) -> None:
            multiply(numbers._replace(values=values[rows]), weight, out)

        sums = exchange.sum(produce, x.size(0) * x.size(1), weight.size(0), like=x, depth=weight.size(1))
        _keep(ctx, numbers, weight)
        ctx.main_grad, ctx.exchange, ctx.shape = main_grad, exchange, x.shape
        return sums.view(-1, x.size(1), weight.size(0))

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight = _kept(ctx)
        dx = dy.new_empty(ctx.shape)

        def use(rows: slice, part: torch.Tensor) -> None:
            multiply_back(cast(part, GRADIENTS, turned=False), weight, rows_of(dx)[rows])

        whole = ctx.exchange.gather(rows_of(dy.contiguous()), use, keeps=True)
        counted = add_fp8_weight_gradient(weight, x, cast(whole, GRADIENTS, values=False), ctx.main_grad)
        return dx, counted, None, None, None


def _keep(ctx: Any, x: Cast, weight: torch.Tensor) -> None:
    """Save what the weight's gradient needs of x, if a backward pass will come."""
    if x.turned is not None:
        ctx.save_for_backward(x.turned, x.scale, weight)


def _kept(ctx: Any) -> tuple[Cast, torch.nn.Parameter]:
    turned, scale, weight = ctx.saved_tensors
    return Cast(None, turned, scale), weight


def multiply(x: Cast, weight: torch.Tensor, out: torch.Tensor) -> None:
    """out [rows, out] = x [rows, in] · weightᵀ."""
    copy = fp8_copy(weight)
    assert copy is not None and copy.values is not None and x.values is not None
    scaled_matmul(x.values, copy.values.t(), out, x.scale, copy.scale)


def multiply_back(dy: Cast, weight: torch.Tensor, dx: torch.Tensor) -> None:
    """dx [rows, in] = dy [rows, out] · weight."""
    copy = fp8_copy(weight)
    assert copy is not None and copy.turned is not None and dy.values is not None
    scaled_matmul(dy.values, copy.turned.t(), dx, dy.scale, copy.scale)
