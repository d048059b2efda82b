"""Products with frozen weights, and with the adapters over them: what LoRA layers compute, for autograd.

A frozen weight needs only the gradient of its input. An adapter needs its own two, which go into DDP's fp32 buffer as
all weights' do. Under tensor parallelism an adapter's one matrix is cut as the weight is, and the other is whole on
every rank. Of the whole one each rank computes a part of the gradient: core/partial_gradients.py adds the parts once a
step. So an adapter communicates nothing beside what its layer does.
"""

from __future__ import annotations

import megatron_patch.core.device  # noqa: F401  prepares megatron-core for this machine

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import distributed
from torch.distributed import ProcessGroup

from megatron_patch.core.tensor_exchange import Exchange
from megatron_patch.core.weight_gradients import add_later_or_now, begins
from megatron_patch.kernels.lora import (
    Blocks,
    add_a_gradient,
    add_b_gradient,
    add_input_gradient_,
    expand_,
    shrink,
    shrink_gradient,
)
from megatron_patch.kernels.products import matmul


class FrozenWeight:
    """A weight [out, in] that stays as it is. What is stored in another form than 16 bits has a subclass."""

    def __init__(self, weight: torch.Tensor) -> None:
        self.weight = weight

    @property
    def out_features(self) -> int:
        """Rows of the weight."""
        return self.weight.size(0)

    @property
    def in_features(self) -> int:
        """Columns of the weight."""
        return self.weight.size(1)

    def begin(self) -> None:
        """Called before the products of each pass; between two passes others compute."""

    def dense(self) -> torch.Tensor:
        """W [out, in] in 16 bits."""
        return self.weight

    def product(self, x: torch.Tensor, y: torch.Tensor) -> None:
        """y [T, out] = x [T, in] · Wᵀ."""
        matmul(x, self.dense().t(), y)

    def input_gradient(self, dy: torch.Tensor, dx: torch.Tensor) -> None:
        """dx [T, in] = dy [T, out] · W."""
        matmul(dy, self.dense(), dx)


@dataclass(frozen=True)
class Adapter:
    """An adapter's form; its matrices are arguments of the functions below, so that autograd knows them."""

    blocks: Blocks
    scale: float


@dataclass
class _Pass:
    """One layer's products: the weight and, if the layer has one, the adapter with its matrices."""

    weight: FrozenWeight
    adapter: Adapter | None
    a: torch.Tensor | None
    b: torch.Tensor | None

    def low(self, x: torch.Tensor) -> torch.Tensor | None:
        """scale · x·Aᵀ, [T, n·r]."""
        return None if self.adapter is None else shrink(x, self.a, self.adapter.scale)  # type: ignore[arg-type]

    def into(self, x: torch.Tensor, y: torch.Tensor, adapted: torch.Tensor) -> torch.Tensor | None:
        """y = x·Wᵀ + the adapter of `adapted`, which is x but for dropout. Returns `low`."""
        self.weight.product(x, y)
        low = self.low(adapted)
        if low is not None:
            expand_(y, low, self.b, self.adapter.blocks)  # type: ignore[arg-type, union-attr]
        return low

    def low_gradient(self, dy: torch.Tensor) -> torch.Tensor | None:
        """scale · dy·B, [T, n·r]."""
        if self.adapter is None:
            return None
        return shrink_gradient(dy, self.b, self.adapter.blocks, self.adapter.scale)  # type: ignore[arg-type]

    def input_gradient(self, dy: torch.Tensor, dlow: torch.Tensor | None, dx: torch.Tensor, kept: torch.Tensor | None) -> None:
        """dx = dy·W + dlow·A; `kept` is what dropout multiplied the adapter's input by."""
        self.weight.input_gradient(dy, dx)
        if dlow is None:
            return
        if kept is None:
            add_input_gradient_(dx, dlow, self.a)  # type: ignore[arg-type]
        else:
            dx.addcmul_(dlow @ self.a, kept)

    def gradients(
        self, x: torch.Tensor | None, low: torch.Tensor | None, dy: torch.Tensor, dlow: torch.Tensor | None
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Add A's and B's gradients to their fp32 buffers. Returns what autograd gets in their place."""
        a, b = self.a, self.b
        if self.adapter is None or a is None or b is None or x is None or low is None or dlow is None:
            return None, None
        blocks = self.adapter.blocks
        add_a = functools.partial(_add_a, a.main_grad, x, dlow)  # type: ignore[attr-defined]
        add_b = functools.partial(_add_b, b.main_grad, dy, low, blocks)  # type: ignore[attr-defined]
        return add_later_or_now(a, add_a), add_later_or_now(b, add_b)  # type: ignore[arg-type]


def _add_a(main_grad: torch.Tensor, x: torch.Tensor, dlow: torch.Tensor) -> None:
    add_a_gradient(main_grad, x, dlow, overwrite=begins(main_grad))


def _add_b(main_grad: torch.Tensor, dy: torch.Tensor, low: torch.Tensor, blocks: Blocks) -> None:
    add_b_gradient(main_grad, dy, low, blocks, overwrite=begins(main_grad))


def _saved(ctx: Any, here: _Pass, x: torch.Tensor, low: torch.Tensor | None, kept: torch.Tensor | None) -> None:
    """Keep for the backward pass what it needs: nothing of a layer without an adapter."""
    ctx.weight, ctx.adapter = here.weight, here.adapter
    ctx.save_for_backward(*((here.a, here.b, x, low, kept) if here.adapter is not None else ()))


def _loaded(ctx: Any) -> tuple[_Pass, torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
    """(the products, the adapter's input, low, kept)."""
    ctx.weight.begin()
    if ctx.adapter is None:
        return _Pass(ctx.weight, None, None, None), None, None, None
    a, b, x, low, kept = ctx.saved_tensors
    return _Pass(ctx.weight, ctx.adapter, a, b), x, low, kept


class FrozenLinear(torch.autograd.Function):
    """x [..., in] → [..., out], without communication in the forward pass.

    With a `group` of tensor-parallel ranks x is the same on all of them, and each has some rows of the weight. Then the
    input's gradients are summed over the group while the adapter's are computed.
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
        here = _Pass(weight, adapter, a, b)
        y = x.new_empty(*x.shape[:-1], weight.out_features)
        adapted = x if kept is None else x * kept
        low = here.into(_flat(x), _flat(y), _flat(adapted))
        _saved(ctx, here, adapted, low, kept)
        ctx.group = group
        return y

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        here, x, low, kept = _loaded(ctx)
        dy = dy.contiguous()
        flat = _flat(dy)
        dlow, dx, summing = here.low_gradient(flat), None, None
        if ctx.needs_input_grad[0]:
            dx = dy.new_empty(*dy.shape[:-1], here.weight.in_features)
            here.input_gradient(flat, dlow, _flat(dx), None if kept is None else _flat(kept))
            summing = None if ctx.group is None else distributed.all_reduce(dx, group=ctx.group, async_op=True)
        da, db = here.gradients(None if x is None else _flat(x), low, flat, dlow)
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
        here = _Pass(weight, adapter, a, b)
        y = x.new_empty(x.size(0) * ranks, x.size(1), weight.out_features)
        flat = _flat(y)
        low = None if a is None else x.new_empty(len(flat), a.size(0))

        def use(rows: slice, whole: torch.Tensor) -> None:
            part = here.into(whole, flat[rows], whole)
            if low is not None:
                low[rows] = part

        exchange.gather(_flat(x), use, keeps=False)
        _saved(ctx, here, x, low, None)
        ctx.exchange = exchange
        return y

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        here, x, low, _ = _loaded(ctx)
        batch = dy.size(1)
        dy = _flat(dy.contiguous())
        gathered = None if x is None else ctx.exchange.begin_gather(_flat(x))
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
        here, flat = _Pass(weight, adapter, a, b), _flat(x)
        low = None if a is None else x.new_empty(len(flat), a.size(0))

        def produce(rows: slice, out: torch.Tensor) -> None:
            part = here.into(flat[rows], out, flat[rows])
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
        part = _flat(dy.contiguous())
        dx = part.new_empty(ctx.rows, here.weight.in_features)
        dlow = None if here.a is None else part.new_empty(len(dx), here.a.size(0))

        def use(rows: slice, whole: torch.Tensor) -> None:
            found = here.low_gradient(whole)
            here.input_gradient(whole, found, dx[rows], None)
            if dlow is not None:
                dlow[rows] = found

        whole = ctx.exchange.gather(part, use, keeps=True)
        da, db = here.gradients(None if x is None else _flat(x), low, whole, dlow)
        return dx.view(-1, batch, here.weight.in_features), da, db, None, None, None


def _flat(tensor: torch.Tensor) -> torch.Tensor:
    """[S, B, width] → [S·B, width]."""
    return tensor.view(-1, tensor.size(-1))
