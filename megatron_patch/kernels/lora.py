"""The low-rank products of LoRA over fused layers: q, k and v at once, gate and up at once.

A fused layer's output is periods of blocks: for each KV head its query heads, its key, its value; or all of gate, then
all of up. Each block belongs to a part, which has an adapter of its own, or none. All parts' A are one matrix
[n·r, in], so one product reads the input once. B is one matrix too, its rows in the order of the output's columns,
without those of blocks that have no adapter.

On GPUs `low_rank.py` has the kernels. Elsewhere, and for ranks that these do not take, B is laid out as [out, n·r] with
zeros where a column's block is another part's, so that each step is one product.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch

from . import low_rank
from ._dispatch import use_triton
from .products import matmul


@dataclass(frozen=True)
class Blocks:
    """How a fused output's columns belong to parts.

    Attributes:
        heights: columns of each block in a period.
        parts: of each block the number of its part, from 0, or None where it has no adapter.
        rank: r.
    """

    heights: tuple[int, ...]
    parts: tuple[int | None, ...]
    rank: int

    @property
    def period(self) -> int:
        """Columns of a period of the output."""
        return sum(self.heights)

    @property
    def rows(self) -> int:
        """Rows of B for each period."""
        return sum(height for height, part in zip(self.heights, self.parts) if part is not None)

    @property
    def count(self) -> int:
        """n, the parts that have an adapter."""
        return sum(part is not None for part in self.parts)

    def places(self) -> Iterator[tuple[slice, slice, slice]]:
        """Of each part: its columns in a period of the output, its rows in one of B, its columns of x·Aᵀ."""
        column = row = 0
        for height, part in zip(self.heights, self.parts):
            if part is not None:
                yield (
                    slice(column, column + height),
                    slice(row, row + height),
                    slice(part * self.rank, (part + 1) * self.rank),
                )
                row += height
            column += height

    @cached_property
    def layout(self) -> low_rank.Layout:
        """As the kernels take it."""
        places = list(self.places())
        columns, rows = (tuple(one[which].start for one in places) for which in (0, 1))
        heights = tuple(one[1].stop - one[1].start for one in places)
        return low_rank.Layout(columns, rows, heights, self.period, self.rows, self.rank)

    def spread(self, b: torch.Tensor) -> torch.Tensor:
        """B [rows, r] as [out, n·r], with zeros where the column's block is another part's."""
        if self.parts == (0,):
            return b
        periods = b.size(0) // self.rows
        whole = b.new_zeros(periods, self.period, self.count * self.rank)
        own = b.view(periods, self.rows, self.rank)
        for columns, rows, within in self.places():
            whole[:, columns, within] = own[:, rows]
        return whole.view(periods * self.period, -1)

    def gathered(self, whole: torch.Tensor, b_grad: torch.Tensor, overwrite: bool) -> None:
        """The inverse of `spread` for a gradient: what of `whole` [out, n·r] is B's, added to `b_grad` [rows, r]."""
        periods = b_grad.size(0) // self.rows
        own = b_grad.view(periods, self.rows, self.rank)
        whole = whole.view(periods, self.period, -1)
        for columns, rows, within in self.places():
            if overwrite:
                own[:, rows] = whole[:, columns, within]
            else:
                own[:, rows] += whole[:, columns, within]


def shrink(x: torch.Tensor, a: torch.Tensor, scale: float, implementation: str | None = None) -> torch.Tensor:
    """scale · x·Aᵀ of all parts: x [T, in], A [n·r, in] → [T, n·r]."""
    low = x.new_empty(x.size(0), a.size(0))
    layout = _plain(a)
    if use_triton(implementation, x) and low_rank.takes(layout):
        low_rank.shrink(x, a.t(), low, layout, scale)
        return low
    matmul(x, a.t(), low)
    return low if scale == 1.0 else low.mul_(scale)


def expand_(y: torch.Tensor, low: torch.Tensor, b: torch.Tensor, blocks: Blocks, implementation: str | None = None) -> None:
    """y [T, out] += each part's low·Bᵀ: low [T, n·r], B [rows, r]."""
    if use_triton(implementation, y) and low_rank.takes(blocks.layout):
        low_rank.expand_(y, low, b, blocks.layout)
    else:
        matmul(low, blocks.spread(b).t(), y, add=True)


def shrink_gradient(
    dy: torch.Tensor, b: torch.Tensor, blocks: Blocks, scale: float, implementation: str | None = None
) -> torch.Tensor:
    """The gradient of x·Aᵀ: scale · each part's dy·B; dy [T, out], B [rows, r] → [T, n·r]."""
    low = dy.new_empty(dy.size(0), blocks.count * blocks.rank)
    if use_triton(implementation, dy) and low_rank.takes(blocks.layout):
        low_rank.shrink(dy, b, low, blocks.layout, scale)
        return low
    matmul(dy, blocks.spread(b), low)
    return low if scale == 1.0 else low.mul_(scale)


def add_input_gradient_(dx: torch.Tensor, dlow: torch.Tensor, a: torch.Tensor, implementation: str | None = None) -> None:
    """dx [T, in] += dlow [T, n·r] · A [n·r, in]."""
    layout = _plain(a)
    if use_triton(implementation, dx) and low_rank.takes(layout):
        low_rank.expand_(dx, dlow, a.t(), layout)
    else:
        matmul(dlow, a, dx, add=True)


def add_a_gradient(
    a_grad: torch.Tensor, x: torch.Tensor, dlow: torch.Tensor, *, overwrite: bool = False, implementation: str | None = None
) -> None:
    """a_grad [n·r, in] fp32 += dlowᵀ·x: x [T, in], dlow [T, n·r]; `overwrite` writes instead of adding."""
    layout = _plain(a_grad)
    if use_triton(implementation, x) and low_rank.takes(layout):
        low_rank.add_gradient(a_grad.t(), x, dlow, layout, overwrite)
    else:
        matmul(dlow.t(), x, a_grad, add=not overwrite)


def add_b_gradient(
    b_grad: torch.Tensor, dy: torch.Tensor, low: torch.Tensor, blocks: Blocks, *, overwrite: bool = False,
    implementation: str | None = None,
) -> None:  # fmt: skip
    """b_grad [rows, r] fp32 += each part's dyᵀ·low: dy [T, out], low [T, n·r], as `shrink` gave it.

    Args:
        overwrite: write instead of adding.
    """
    if use_triton(implementation, dy) and low_rank.takes(blocks.layout):
        low_rank.add_gradient(b_grad, dy, low, blocks.layout, overwrite)
    elif blocks.parts == (0,):
        matmul(dy.t(), low, b_grad, add=not overwrite)
    else:
        whole = torch.empty(dy.size(1), low.size(1), dtype=torch.float32, device=dy.device)
        matmul(dy.t(), low, whole)
        blocks.gathered(whole, b_grad, overwrite)


def _plain(a: torch.Tensor) -> low_rank.Layout:
    """A [n·r, in] as one part: every row for all columns."""
    return low_rank.Layout((0,), (0,), (a.size(1),), a.size(1), a.size(1), a.size(0))
