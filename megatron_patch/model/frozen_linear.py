"""A LoRA layer for autograd: the products of `frozen_products.py`, and what tensor-parallel ranks exchange around them.

An adapter's one matrix is cut as the weight is, and the other is whole on every rank. Of the whole one each rank
computes a part of the gradient: core/partial_gradients.py adds the parts once a step. So an adapter communicates
nothing beside what its layer does.
"""

from __future__ import annotations

import megatron_patch.core.device  # noqa: F401  prepares megatron-core for this machine

from typing import Any

import torch
from torch import distributed
from torch.distributed import ProcessGroup

from megatron_patch.core.tensor_exchange import Exchange
from megatron_patch.kernels.fp8 import note_largest, noted_largest
from megatron_patch.kernels.products import rows_of
from megatron_patch.model.frozen_products import Adapter, FrozenWeight, Products


def _rows(x: torch.Tensor) -> torch.Tensor:
    """`rows_of` x, with the largest number that was noted on x."""
    return note_largest(rows_of(x), noted_largest(x))


def _saved(ctx: Any, here: Products, x: torch.Tensor, low: torch.Tensor | None, kept: torch.Tensor | None) -> None:
    """Keep for the backward pass what it needs: nothing of a layer without an adapter."""
    ctx.weight, ctx.adapter = here.weight, here.adapter
    ctx.save_for_backward(*((here.a, here.b, x, low, kept) if here.adapter is not None else ()))


def _loaded(ctx: Any) -> tuple[Products, torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
    """(the products, the adapter's input, low, kept)."""
    ctx.weight.begin()
    if ctx.adapter is None:
        return Products(ctx.weight, None, None, None), None, None, None
    a, b, x, low, kept = ctx.saved_tensors
    return Products(ctx.weight, ctx.adapter, a, b), x, low, kept


class FrozenLinear(torch.autograd.Function):
    """x [..., in] → [..., out], the frozen weight's product and the adapter's, without communication in this pass.

    `a` and `b` are the adapter's matrices, or None. `kept` is 1 where dropout keeps the adapter's input,
    0 where not, of the shape of x. With a `group` of tensor-parallel ranks x is the same on all of them, and each has
    some rows of the weight. Then the input's gradients are summed over the group while the adapter's are computed.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        a: torch.Tensor | None,
        b: torch.Tensor | None,
        weight: FrozenWeight,
        adapter: Adapter | None,
        kept: torch.Tensor | None,
        group: ProcessGroup | None,
    ) -> torch.Tensor:
        """y = x Wᵀ + scale · B A x, and what the backward pass needs of it is kept."""
        here = Products(weight, adapter, a, b)
        y = x.new_empty(*x.shape[:-1], weight.out_features)
        adapted = x if kept is None else x * kept
        low = here.into(weight.prepared(_rows(x)), rows_of(y), rows_of(adapted))
        _saved(ctx, here, adapted, low, kept)
        ctx.group = group
        return y

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Gradients of x, a and b, of their shapes; None for what needs none, and for every other argument."""
        here, x, low, kept = _loaded(ctx)
        dy = dy.contiguous()
        flat = _rows(dy)
        dlow, dx, summing = here.low_gradient(flat), None, None
        if ctx.needs_input_grad[0]:
            dx = dy.new_empty(*dy.shape[:-1], here.weight.in_features)
            here.input_gradient(flat, dlow, rows_of(dx), None if kept is None else rows_of(kept))
            summing = None if ctx.group is None else distributed.all_reduce(dx, group=ctx.group, async_op=True)
        da, db = here.gradients(None if x is None else rows_of(x), low, flat, dlow)
        if summing is not None:
            summing.wait()
        return dx, da, db, None, None, None, None


class GatheredFrozenLinear(torch.autograd.Function):
    """x [S / TP, B, in], this rank's part of the sequence, weight [out / TP, in] → [S, B, out / TP] of all of it."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        a: torch.Tensor | None,
        b: torch.Tensor | None,
        weight: FrozenWeight,
        adapter: Adapter | None,
        exchange: Exchange,
        ranks: int,
    ) -> torch.Tensor:
        here = Products(weight, adapter, a, b)
        y = x.new_empty(x.size(0) * ranks, x.size(1), weight.out_features)
        flat = rows_of(y)
        low = None if a is None else x.new_empty(len(flat), a.size(0))

        def use(rows: slice, whole: torch.Tensor) -> None:
            part = here.into(weight.prepared(whole), flat[rows], whole)
            if low is not None:
                low[rows] = part

        exchange.gather(rows_of(x), use, keeps=False)
        _saved(ctx, here, x, low, None)
        ctx.exchange = exchange
        return y

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        here, x, low, _ = _loaded(ctx)
        batch = dy.size(1)
        dy = _rows(dy.contiguous())
        gathered = None if x is None else ctx.exchange.begin_gather(rows_of(x))
        dlow = here.low_gradient(dy)
        room = ctx.exchange.room(len(dy), here.weight.in_features, dy) if ctx.needs_input_grad[0] else None
        if room is not None:
            here.input_gradient(dy, dlow, room.own, None)
        whole = None if gathered is None else gathered.get()
        sums = None if room is None else ctx.exchange.begin_sum(room)
        da, db = here.gradients(whole, low, dy, dlow)
        dx = None if sums is None else sums.get().view(-1, batch, here.weight.in_features)
        return dx, da, db, None, None, None, None


class SummedFrozenLinear(torch.autograd.Function):
    """x [S, B, in / TP] and weight [out, in / TP] → this rank's part [S / TP, B, out] of the ranks' sum."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        a: torch.Tensor | None,
        b: torch.Tensor | None,
        weight: FrozenWeight,
        adapter: Adapter | None,
        exchange: Exchange,
    ) -> torch.Tensor:
        here, flat = Products(weight, adapter, a, b), _rows(x)
        prepared = weight.prepared(flat)
        low = None if a is None else x.new_empty(len(flat), a.size(0))

        def produce(rows: slice, out: torch.Tensor) -> None:
            part = here.into(weight.part(prepared, rows), out, flat[rows])
            if low is not None:
                low[rows] = part

        sums = exchange.sum(produce, len(flat), weight.out_features, like=x, depth=weight.in_features)
        _saved(ctx, here, x, low, None)
        ctx.exchange, ctx.rows = exchange, len(flat)
        return sums.view(-1, x.size(1), weight.out_features)

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        here, x, low, _ = _loaded(ctx)
        batch = dy.size(1)
        part = rows_of(dy.contiguous())
        dx = part.new_empty(ctx.rows, here.weight.in_features)
        dlow = None if here.a is None else part.new_empty(len(dx), here.a.size(0))

        def use(rows: slice, whole: torch.Tensor) -> None:
            found = here.low_gradient(whole)
            here.input_gradient(whole, found, dx[rows], None)
            if dlow is not None:
                dlow[rows] = found

        whole = ctx.exchange.gather(part, use, keeps=True)
        da, db = here.gradients(None if x is None else rows_of(x), low, whole, dlow)
        return dx.view(-1, batch, here.weight.in_features), da, db, None, None, None
