"""Three Triton kernels between a wide matrix [T, W] and a narrow one [T, n·r], through M [rows, r]: memory-bound, since
r is small.

The wide matrix's columns are periods of blocks, as `lora.Blocks` says; M has a row for each column of a block with a
part, and each part has r columns of the narrow matrix. A program takes a tile of `TILE` columns, which must lie in one
block, so TILE divides every block's height.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from ._dispatch import ceil_div, kernel, multiprocessors, next_power_of_two, tl

MOST_RANK = 128  # of one part: its sums stay in registers


class Layout(NamedTuple):
    """Blocks as the kernels take them: of up to three parts the first column in a period, the first row, the height."""

    columns: tuple[int, ...]
    rows: tuple[int, ...]
    heights: tuple[int, ...]
    period: int  # columns of the wide matrix
    rows_each: int  # rows of M in a period
    rank: int

    @property
    def tile(self) -> int:
        """Columns of a tile; below 16 no kernel takes it."""
        sizes = (*self.heights, *self.columns, self.period)
        return next(tile for tile in (128, 64, 32, 16, 1) if all(size % tile == 0 for size in sizes))

    def three(self, values: Sequence[int]) -> tuple[int, int, int]:
        """As many as the kernels have arguments for."""
        return (*values, *(0,) * (3 - len(values)))  # type: ignore[return-value]


def takes(layout: Layout) -> bool:
    """Whether the kernels have sizes for it."""
    return len(layout.heights) <= 3 and layout.tile >= 16 and layout.rank <= MOST_RANK


def shrink(wide: torch.Tensor, m: torch.Tensor, low: torch.Tensor, layout: Layout, scale: float) -> None:
    """low [T, n·r] = scale · wide [T, W] · M, each part with its own rows of M [rows, r], of any strides."""
    tokens, parts = wide.size(0), len(layout.heights)
    enough = (multiprocessors(wide.device) * 7) // 8
    block = next((size for size in (64, 32) if ceil_div(tokens, size) * parts >= enough), 16)
    each = max(layout.heights) // layout.tile
    _shrink_kernel[(ceil_div(tokens, block), parts)](
        wide, m, low, tokens, wide.stride(0), low.stride(0), *m.stride(), scale, layout.rank, layout.period,
        layout.rows_each, *layout.three(layout.columns), *layout.three(layout.rows), *layout.three(layout.heights),
        m.size(0) // layout.rows_each * each, each, block, layout.tile, max(16, next_power_of_two(layout.rank)),
        wide.dtype == torch.float32, num_warps=4, num_stages=4,
    )  # fmt: skip


def expand_(wide: torch.Tensor, low: torch.Tensor, m: torch.Tensor, layout: Layout) -> None:
    """wide [T, W] += low [T, n·r] · Mᵀ, each part into its own blocks; other columns stay."""
    tokens, block = wide.size(0), 64
    tiles = m.size(0) // layout.tile
    _expand_kernel[(tiles, ceil_div(tokens, block))](
        wide, low, m, tokens, wide.stride(0), low.stride(0), *m.stride(), layout.rank, layout.period, layout.rows_each,
        *layout.three(layout.columns), *layout.three(layout.rows), block, layout.tile,
        max(16, next_power_of_two(layout.rank)), wide.dtype == torch.float32, num_warps=4,
    )  # fmt: skip


def add_gradient(grad: torch.Tensor, wide: torch.Tensor, low: torch.Tensor, layout: Layout, overwrite: bool) -> None:
    """grad (fp32, M's gradient, of any strides) += wideᵀ [W, T] · low [T, n·r] of each row's part.

    Programs that share a row take tokens in turn and write parts of the sum, which are then added in their order.
    """
    tokens, tiles = wide.size(0), grad.size(0) // layout.tile
    block = 64
    programs = max(1, min(ceil_div(tokens, block), ceil_div(2 * multiprocessors(wide.device), tiles)))
    each = ceil_div(ceil_div(tokens, block), programs)
    parts = torch.empty(programs, grad.size(0), layout.rank, dtype=torch.float32, device=wide.device)
    _gradient_kernel[(tiles, programs)](
        parts, wide, low, tokens, wide.stride(0), low.stride(0), layout.rank, grad.size(0), layout.period,
        layout.rows_each, *layout.three(layout.columns), *layout.three(layout.rows), each, block, layout.tile,
        max(16, next_power_of_two(layout.rank)), wide.dtype == torch.float32, num_warps=4, num_stages=4,
    )  # fmt: skip
    total = parts[0] if programs == 1 else parts.sum(0)
    if overwrite:
        grad.copy_(total)
    else:
        grad.add_(total)


@kernel
def _shrink_kernel(
    wide_ptr, m_ptr, low_ptr, tokens, wide_stride, low_stride, m_row, m_column, scale, rank, period, rows_each,
    column0, column1, column2, row0, row1, row2, height0, height1, height2,
    TURNS: tl.constexpr, EACH: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr, RANK: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    part = tl.program_id(1)
    column = tl.where(part == 0, column0, tl.where(part == 1, column1, column2))
    row = tl.where(part == 0, row0, tl.where(part == 1, row1, row2))
    height = tl.where(part == 0, height0, tl.where(part == 1, height1, height2))
    token = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside, ranks = tl.arange(0, TILE), tl.arange(0, RANK)
    total = tl.zeros([BLOCK, RANK], dtype=tl.float32)
    for i in range(0, TURNS):
        # EACH tiles are as many as the highest block has; a lower one has nothing in the last of them.
        period_number, tile = i // EACH, (i % EACH) * TILE
        columns = tl.multiple_of(period_number * period + column + tile, TILE) + inside
        rows = tl.multiple_of(period_number * rows_each + row + tile, TILE) + inside
        last, width = tl.where(tile < height, tokens, 0), tl.where(tile < height, rank, 0)
        x = tl.load(
            wide_ptr + token[:, None].to(tl.int64) * wide_stride + columns[None, :], mask=token[:, None] < last, other=0.0
        )
        m = tl.load(m_ptr + rows[:, None] * m_row + ranks[None, :] * m_column, mask=ranks[None, :] < width, other=0.0)
        total += tl.dot(x, m, input_precision="ieee" if EXACT else "tf32")
    mask = (token[:, None] < tokens) & (ranks[None, :] < rank)
    where = low_ptr + token[:, None].to(tl.int64) * low_stride + part * rank + ranks[None, :]
    tl.store(where, (total * scale).to(low_ptr.dtype.element_ty), mask=mask)


@kernel
def _expand_kernel(
    wide_ptr, low_ptr, m_ptr, tokens, wide_stride, low_stride, m_row, m_column, rank, period, rows_each,
    column0, column1, column2, row0, row1, row2,
    BLOCK: tl.constexpr, TILE: tl.constexpr, RANK: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0) * TILE  # row of M
    within = first % rows_each
    # A part's rows follow those of the part before; parts that are not there have row 0, as the first one has.
    part = tl.where((row1 > 0) & (within >= row1), 1, 0) + tl.where((row2 > 0) & (within >= row2), 1, 0)
    column = tl.where(part == 0, column0, tl.where(part == 1, column1, column2))
    row = tl.where(part == 0, row0, tl.where(part == 1, row1, row2))
    inside, ranks = tl.arange(0, TILE), tl.arange(0, RANK)
    token = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    columns = tl.multiple_of((first // rows_each) * period + column + within - row, TILE) + inside
    low = tl.load(
        low_ptr + token[:, None].to(tl.int64) * low_stride + part * rank + ranks[None, :],
        mask=(token[:, None] < tokens) & (ranks[None, :] < rank), other=0.0,
    )  # fmt: skip
    m = tl.load(m_ptr + ranks[:, None] * m_column + (first + inside)[None, :] * m_row, mask=ranks[:, None] < rank, other=0.0)
    where = wide_ptr + token[:, None].to(tl.int64) * wide_stride + columns[None, :]
    before = tl.load(where, mask=token[:, None] < tokens, other=0.0).to(tl.float32)
    total = before + tl.dot(low, m, input_precision="ieee" if EXACT else "tf32")
    tl.store(where, total.to(wide_ptr.dtype.element_ty), mask=token[:, None] < tokens)


@kernel
def _gradient_kernel(
    parts_ptr, wide_ptr, low_ptr, tokens, wide_stride, low_stride, rank, rows_all, period, rows_each,
    column0, column1, column2, row0, row1, row2,
    EACH: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr, RANK: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0) * TILE
    within = first % rows_each
    part = tl.where((row1 > 0) & (within >= row1), 1, 0) + tl.where((row2 > 0) & (within >= row2), 1, 0)
    column = tl.where(part == 0, column0, tl.where(part == 1, column1, column2))
    row = tl.where(part == 0, row0, tl.where(part == 1, row1, row2))
    inside, ranks = tl.arange(0, TILE), tl.arange(0, RANK)
    columns = tl.multiple_of((first // rows_each) * period + column + within - row, TILE) + inside
    total = tl.zeros([TILE, RANK], dtype=tl.float32)
    for i in range(0, EACH):
        token = (tl.program_id(1) * EACH + i) * BLOCK + tl.arange(0, BLOCK)
        wide = tl.load(
            wide_ptr + token[None, :].to(tl.int64) * wide_stride + columns[:, None], mask=token[None, :] < tokens, other=0.0
        )
        low = tl.load(
            low_ptr + token[:, None].to(tl.int64) * low_stride + part * rank + ranks[None, :],
            mask=(token[:, None] < tokens) & (ranks[None, :] < rank), other=0.0,
        )  # fmt: skip
        total += tl.dot(wide, low, input_precision="ieee" if EXACT else "tf32")
    rows = tl.program_id(1).to(tl.int64) * rows_all + first + inside
    tl.store(parts_ptr + rows[:, None] * rank + ranks[None, :], total, mask=ranks[None, :] < rank)
