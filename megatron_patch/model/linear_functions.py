"""The autograd functions of linear layers: who sends what to whom, and beside which product.

What numbers the products have is an argument: 16 bits here, FP8 in fp8_linear.py. A layer's weight gradient goes
straight into DDP's fp32 buffer. Communication runs while products do: the sum of the input's gradient here, and under
sequence parallelism what core/tensor_exchange.py exchanges. Ranks exchange numbers of 16 bits.
"""

from __future__ import annotations

import megatron_patch.core.device  # noqa: F401  prepares megatron-core for this machine

from typing import Any

import torch
from torch import distributed
from torch.distributed import ProcessGroup

from megatron_patch.core.tensor_exchange import Exchange
from megatron_patch.core.weight_gradients import add_weight_gradient
from megatron_patch.kernels.products import matmul, rows_of


class Products:
    """The products of a weight [out, in], of 16 bits. What they take for a matrix is that matrix as rows.

    A subclass takes something else, which may be made for one use alone: `values` for a product with the weight,
    `turned` for the weight's gradient.
    """

    def input(self, x: torch.Tensor, *, values: bool = True, turned: bool = True) -> Any:
        """What products take for x [..., in], contiguous."""
        return rows_of(x)

    def gradient(self, dy: torch.Tensor, *, values: bool = True, turned: bool = True) -> Any:
        """What products take for dy [..., out]."""
        return rows_of(dy.contiguous())

    def rows(self, x: Any, rows: slice) -> Any:
        """Some rows of an input."""
        return x[rows]

    def kept(self, x: Any) -> tuple[torch.Tensor, ...]:
        """What `add` takes for an input."""
        return (x,)

    def forward(self, x: Any, weight: torch.Tensor, y: torch.Tensor) -> None:
        """y [T, out] = x · weightᵀ."""
        matmul(x, weight.t(), y)

    def backward(self, dy: Any, weight: torch.Tensor, dx: torch.Tensor) -> None:
        """dx [T, in] = dy · weight."""
        matmul(dy, weight, dx)

    def add(self, weight: torch.nn.Parameter, kept: Any, dy: Any, main_grad: torch.Tensor) -> torch.Tensor:
        """Add the weight's gradient to its fp32 `main_grad` [out, in]; returns as `add_weight_gradient`."""
        return add_weight_gradient(weight, kept[0], dy, main_grad)


class Linear(torch.autograd.Function):
    """x [..., in], weight [out, in] → [..., out]. The weight's gradient goes into its fp32 `main_grad` [out, in].

    Without a `group` the layer does not communicate. With a `group` of tensor-parallel ranks x is the same on all of
    them, and each has some rows of the weight. Then the input's gradients are summed over the group while the weight's
    gradient is computed. `keeps`: whether a backward pass will come.
    """

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, main_grad: torch.Tensor, products: Products,
        group: ProcessGroup | None, keeps: bool,
    ) -> torch.Tensor:  # fmt: skip
        factor = products.input(x, turned=keeps)
        y = x.new_empty(*x.shape[:-1], weight.size(0))
        products.forward(factor, weight, rows_of(y))
        if keeps:
            ctx.save_for_backward(weight, *products.kept(factor))
        ctx.main_grad, ctx.products, ctx.group, ctx.shape = main_grad, products, group, x.shape
        return y

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        weight, *kept = ctx.saved_tensors
        factor, dx = ctx.products.gradient(dy), dy.new_empty(ctx.shape)
        ctx.products.backward(factor, weight, rows_of(dx))
        summing = None if ctx.group is None else distributed.all_reduce(dx, group=ctx.group, async_op=True)
        counted = ctx.products.add(weight, kept, factor, ctx.main_grad)
        if summing is not None:
            summing.wait()
        return dx, counted, None, None, None, None


class GatheredLinear(torch.autograd.Function):
    """x [S / TP, B, in], this rank's part of the sequence, weight [out / TP, in] → [S, B, out / TP] of all of it."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, main_grad: torch.Tensor, products: Products, exchange: Exchange,
        ranks: int,
    ) -> torch.Tensor:  # fmt: skip
        ctx.save_for_backward(weight, x)
        ctx.main_grad, ctx.products, ctx.exchange = main_grad, products, exchange
        y = x.new_empty(x.size(0) * ranks, x.size(1), weight.size(0))

        def use(rows: slice, whole: torch.Tensor) -> None:
            products.forward(products.input(whole, turned=False), weight, rows_of(y)[rows])

        exchange.gather(rows_of(x), use, keeps=False)
        return y

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (weight, x), products = ctx.saved_tensors, ctx.products
        gathered = ctx.exchange.begin_gather(rows_of(x))
        factor = products.gradient(dy)
        room = ctx.exchange.room(dy.size(0) * dy.size(1), x.size(2), x)
        products.backward(factor, weight, room.own)
        whole = gathered.get()
        sums = ctx.exchange.begin_sum(room)
        counted = products.add(weight, products.kept(products.input(whole, values=False)), factor, ctx.main_grad)
        return sums.get().view_as(x), counted, None, None, None, None


class SummedLinear(torch.autograd.Function):
    """x [S, B, in / TP] and weight [out, in / TP] → this rank's part [S / TP, B, out] of the ranks' sum."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, main_grad: torch.Tensor, products: Products, exchange: Exchange,
        keeps: bool,
    ) -> torch.Tensor:  # fmt: skip
        factor = products.input(x, turned=keeps)

        def produce(rows: slice, out: torch.Tensor) -> None:
            products.forward(products.rows(factor, rows), weight, out)

        sums = exchange.sum(produce, x.size(0) * x.size(1), weight.size(0), like=x, depth=weight.size(1))
        if keeps:
            ctx.save_for_backward(weight, *products.kept(factor))
        ctx.main_grad, ctx.products, ctx.exchange, ctx.shape = main_grad, products, exchange, x.shape
        return sums.view(-1, x.size(1), weight.size(0))

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (weight, *kept), products = ctx.saved_tensors, ctx.products
        dx = dy.new_empty(ctx.shape)

        def use(rows: slice, part: torch.Tensor) -> None:
            products.backward(products.gradient(part, turned=False), weight, rows_of(dx)[rows])

        whole = ctx.exchange.gather(rows_of(dy.contiguous()), use, keeps=True)
        counted = products.add(weight, kept, products.gradient(whole, values=False), ctx.main_grad)
        return dx, counted, None, None, None, None
