"""A frozen weight's products, and those of the adapter over it: what one LoRA layer computes on one rank.

A frozen weight needs only the gradient of its input. An adapter needs its own two, which go into DDP's fp32 buffer as
all weights' do.
"""

from __future__ import annotations

import megatron_patch.core.device  # noqa: F401  prepares megatron-core for this machine

import functools
from dataclasses import dataclass
from typing import Any

import torch

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
from megatron_patch.model import linear_functions

_SIXTEEN_BITS = linear_functions.Products()


class FrozenWeight:
    """A weight [out, in] that stays as it is. What is not stored in 16 bits as well has a subclass.

    Args:
        kind: of what numbers its products are.
    """

    def __init__(self, weight: torch.Tensor, kind: linear_functions.Products = _SIXTEEN_BITS) -> None:
        self.weight, self.kind = weight, kind

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

    def prepared(self, x: torch.Tensor) -> Any:
        """What `product` takes for x [T, in]. It is made once, also where the product is made of parts of x."""
        return self.kind.input(x, turned=False)

    def part(self, prepared: Any, rows: slice) -> Any:
        """What `product` takes for `rows` of x, of what was `prepared` for all of it."""
        return self.kind.rows(prepared, rows)

    def product(self, prepared: Any, y: torch.Tensor) -> None:
        """y [T, out] = x [T, in] · Wᵀ."""
        self.kind.forward(prepared, self.dense(), y)

    def input_gradient(self, dy: torch.Tensor, dx: torch.Tensor) -> None:
        """dx [T, in] = dy [T, out] · W."""
        self.kind.backward(self.kind.gradient(dy, turned=False), self.dense(), dx)


@dataclass(frozen=True)
class Adapter:
    """An adapter's form; its matrices are arguments of the functions below, so that autograd knows them."""

    blocks: Blocks
    scale: float


@dataclass
class Products:
    """One layer's products: the weight and, if the layer has one, the adapter with its matrices."""

    weight: FrozenWeight
    adapter: Adapter | None
    a: Any  # [n·r, in]; None without an adapter, as the next one
    b: Any  # [rows, r]

    def low(self, x: torch.Tensor) -> Any:
        """scale · x·Aᵀ, [T, n·r]."""
        return None if self.adapter is None else shrink(x, self.a, self.adapter.scale)

    def into(self, prepared: Any, y: torch.Tensor, adapted: torch.Tensor) -> Any:
        """y = x·Wᵀ + the adapter of `adapted`, which is x but for dropout. Returns `low`.

        Args:
            prepared: what the weight has `prepared` of x.
        """
        self.weight.product(prepared, y)
        low = self.low(adapted)
        if self.adapter is not None:
            expand_(y, low, self.b, self.adapter.blocks)
        return low

    def low_gradient(self, dy: torch.Tensor) -> Any:
        """scale · dy·B, [T, n·r]."""
        if self.adapter is None:
            return None
        return shrink_gradient(dy, self.b, self.adapter.blocks, self.adapter.scale)

    def input_gradient(self, dy: torch.Tensor, dlow: torch.Tensor | None, dx: torch.Tensor, kept: torch.Tensor | None) -> None:
        """dx = dy·W + dlow·A; `kept` [T, in] is 1 where dropout kept the adapter's input, 0 where not."""
        self.weight.input_gradient(dy, dx)
        if dlow is None:
            return
        if kept is None:
            add_input_gradient_(dx, dlow, self.a)
        else:
            dx.add_((dlow @ self.a).mul_(kept))

    def gradients(
        self, x: torch.Tensor | None, low: torch.Tensor | None, dy: torch.Tensor, dlow: torch.Tensor | None
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Add A's and B's gradients to their fp32 buffers. Returns what autograd gets in their place."""
        a, b = self.a, self.b
        if self.adapter is None or a is None or b is None or x is None or low is None or dlow is None:
            return None, None
        blocks = self.adapter.blocks
        add_a = functools.partial(_add_a, a.main_grad, x, dlow)
        add_b = functools.partial(_add_b, b.main_grad, dy, low, blocks)
        return add_later_or_now(a, add_a), add_later_or_now(b, add_b)


def _add_a(main_grad: torch.Tensor, x: torch.Tensor, dlow: torch.Tensor) -> None:
    add_a_gradient(main_grad, x, dlow, overwrite=begins(main_grad))


def _add_b(main_grad: torch.Tensor, dy: torch.Tensor, low: torch.Tensor, blocks: Blocks) -> None:
    add_b_gradient(main_grad, dy, low, blocks, overwrite=begins(main_grad))
