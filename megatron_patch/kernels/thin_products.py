"""Products of few rows with a large weight: what decoding does in each layer.

Memory's speed is the limit: each weight is read once and multiplied a few times. So a kernel has to keep many reads
under way, and what surrounds a product joins it: a kernel of its own would leave memory idle while it starts and ends.

One row is a sum for each row of the weight, with the norm before it and the residual sum or SwiGLU behind it in the
same kernel. The norm's 1 / rms is one factor of the whole result, so it is known in time if its sum is made beside the
product.
Few rows go through tensor cores, whose smallest tile has 16 of them. A weight of few rows is cut along the sums too, so
that every multiprocessor has work. A second kernel joins the parts, adds the residual and normalizes.

With `overlap` a kernel may begin while the one before it ends (programmatic dependent launch, from compute capability
9.0 on). Before it waits for that one's end it reads weights alone, which no kernel writes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F

from ._dispatch import ceil_div, kernel, launch_options, next_power_of_two, tl, use_triton
from .rms_norm import rms_norm_reference
from .sum_and_norm import sum_and_norm
from .swiglu import swiglu_reference

_LINE = 128  # bytes that come into a cache at once
MOST_ROWS = 64  # of the thin matrix; for more, a library's products are at home


class Tiling(NamedTuple):
    """How a product is cut, by which it gets faster or slower and nothing else.

    Attributes:
        rows: of the weight, that a program takes.
        depth: elements of a row that it takes at a time.
        splits: parts of a row that different programs take; only `product_add_norm` can join them.
        overlap: whether it may begin while the kernel before it ends.
    """

    rows: int
    depth: int
    splits: int = 1
    warps: int = 4
    stages: int = 4
    overlap: bool = False


ONE_ROW = Tiling(16, 256)
FEW_ROWS = Tiling(64, 128)
FEW_ROWS_SPLIT = Tiling(64, 128, splits=4)


def row_product(
    x: torch.Tensor,
    weight: torch.Tensor,
    *,
    norm: torch.Tensor | None = None,
    eps: float = 0.0,
    residual: torch.Tensor | None = None,
    gated: bool = False,
    out_dtype: torch.dtype | None = None,
    tiling: Tiling = ONE_ROW,
    implementation: str | None = None,
) -> torch.Tensor:
    """x [1, K] · weightᵀ with what surrounds it: [1, R].

    Args:
        weight: [R, K]; with `gated` [2·R, K], the gate's rows first.
        norm: [K], the weight of an RMSNorm of x before the product.
        residual: [1, R], added to the product.
        gated: whether the result is silu(gate) · up.
        out_dtype: of the result; None: x's.

    Raises:
        ValueError: shapes do not agree.
    """
    _check(x, weight, 1)
    if use_triton(implementation, x):
        return _row_product(x, weight, norm, eps, residual, gated, out_dtype or x.dtype, tiling)
    normed = x if norm is None else rms_norm_reference(x, norm, eps)[0]
    found = _linear(normed, weight, gated, out_dtype)
    return found if residual is None else found + residual


def product(
    x: torch.Tensor,
    weight: torch.Tensor,
    *,
    gated: bool = False,
    out_dtype: torch.dtype | None = None,
    tiling: Tiling = FEW_ROWS,
    implementation: str | None = None,
) -> torch.Tensor:
    """x [B, K] · weightᵀ → [B, R], B up to MOST_ROWS; the other arguments are `row_product`'s.

    Raises:
        ValueError: shapes do not agree.
    """
    _check(x, weight, MOST_ROWS)
    if not use_triton(implementation, x):
        return _linear(x, weight, gated, out_dtype)
    rows = weight.shape[0] // 2 if gated else weight.shape[0]
    out = torch.empty(x.shape[0], rows, dtype=out_dtype or x.dtype, device=x.device)
    _launch_few_rows(x, weight, out, gated, tiling._replace(splits=1))
    return out


def product_add_norm(
    x: torch.Tensor,
    weight: torch.Tensor,
    residual: torch.Tensor,
    norm: torch.Tensor,
    eps: float,
    *,
    tiling: Tiling = FEW_ROWS_SPLIT,
    implementation: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(sum, RMSNorm(sum)), both [B, R], of the sum x [B, K] · weightᵀ + residual; `norm` is [R].

    Raises:
        ValueError: shapes do not agree.
    """
    _check(x, weight, MOST_ROWS)
    if not use_triton(implementation, x):
        found = _linear(x, weight, False, None) + residual
        return found, rms_norm_reference(found, norm, eps)[0]
    partial = torch.empty(tiling.splits, x.shape[0], weight.shape[0], dtype=torch.float32, device=x.device)
    _launch_few_rows(x, weight, partial, False, tiling)
    return sum_and_norm(residual, norm, eps, partial, overlap=tiling.overlap)


def _check(x, weight, most) -> None:
    if x.dim() != 2 or weight.dim() != 2 or x.shape[1] != weight.shape[1] or not 1 <= x.shape[0] <= most:
        raise ValueError(
            f"x is {list(x.shape)} and weight {list(weight.shape)}; they must be [B, K] and [R, K], B from 1 to {most}."
        )


def _linear(x, weight, gated, out_dtype):
    found = F.linear(x, weight)
    return (swiglu_reference(found) if gated else found).to(out_dtype or x.dtype)


def _row_product(x, weight, norm, eps, residual, gated, dtype, tiling):
    x, size = x.contiguous(), x.shape[1]
    rows = weight.shape[0] // 2 if gated else weight.shape[0]
    out = torch.empty(1, rows, dtype=dtype, device=x.device)
    _one_row[(ceil_div(rows, tiling.rows),)](
        x, weight, norm, residual, out, eps, size, rows, NORM=norm is not None, GATED=gated, ADDS=residual is not None,
        ROWS=tiling.rows, DEPTH=tiling.depth, EVEN=rows % tiling.rows == 0 and size % tiling.depth == 0,
        OVERLAP=tiling.overlap, num_warps=tiling.warps, **launch_options(x, tiling.overlap),
    )  # fmt: skip
    return out


def _launch_few_rows(x, weight, out, gated, tiling):
    x, (batch, size) = x.contiguous(), x.shape
    rows = out.shape[-1]
    _few_rows[(ceil_div(rows, tiling.rows), tiling.splits)](
        x, weight, out, size, rows, batch, GATED=gated, ROWS=tiling.rows, BATCH=max(16, next_power_of_two(batch)),
        DEPTH=tiling.depth, SPLITS=tiling.splits, EVEN=rows % tiling.rows == 0 and size % tiling.depth == 0,
        LINES=max(1, 2 * tiling.depth * weight.itemsize // _LINE), PER_LINE=_LINE // weight.itemsize, WIDEN=not x.is_cuda,
        OVERLAP=tiling.overlap, num_warps=tiling.warps, num_stages=tiling.stages, **launch_options(x, tiling.overlap),
    )  # fmt: skip


@kernel
def _one_row(
    x, weight, norm, residual, out, eps, size, rows, NORM: tl.constexpr, GATED: tl.constexpr, ADDS: tl.constexpr,
    ROWS: tl.constexpr, DEPTH: tl.constexpr, EVEN: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """ROWS sums. The next piece of the weight is asked for before this one is used."""
    row, column = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, DEPTH)
    there = row < rows
    at = row.to(tl.int64)[:, None] * size + column[None, :]
    up_at = at + rows.to(tl.int64) * size
    if EVEN:
        piece = tl.load(weight + at, eviction_policy="evict_first")
    else:
        mask = there[:, None] & (column < size)[None, :]
        piece = tl.load(weight + at, mask=mask, other=0.0, eviction_policy="evict_first")
    if GATED:
        if EVEN:
            up_piece = tl.load(weight + up_at, eviction_policy="evict_first")
        else:
            up_piece = tl.load(weight + up_at, mask=mask, other=0.0, eviction_policy="evict_first")
        up_sums = tl.zeros([ROWS, DEPTH], tl.float32)
    if OVERLAP:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    sums = tl.zeros([ROWS, DEPTH], tl.float32)
    squares = tl.zeros([DEPTH], tl.float32)
    for start in range(0, size, DEPTH):
        following = start + DEPTH
        if EVEN:
            ahead = tl.full([1, DEPTH], following, tl.int32) < size  # of all or of none
            value = tl.load(x + start + column).to(tl.float32)
        else:
            ahead = there[:, None] & (following + column < size)[None, :]
            value = tl.load(x + start + column, mask=start + column < size, other=0.0).to(tl.float32)
        next_piece = tl.load(weight + at + following, mask=ahead, other=0.0, eviction_policy="evict_first")
        if GATED:
            next_up = tl.load(weight + up_at + following, mask=ahead, other=0.0, eviction_policy="evict_first")
        if NORM:
            squares += value * value
            value *= tl.load(norm + start + column, mask=start + column < size, other=0.0).to(tl.float32)
        sums += piece.to(tl.float32) * value[None, :]
        piece = next_piece
        if GATED:
            up_sums += up_piece.to(tl.float32) * value[None, :]
            up_piece = next_up
    found = tl.sum(sums, axis=1)
    if NORM:
        factor = 1.0 / tl.sqrt(tl.sum(squares, axis=0) / size + eps)
        found *= factor
    if GATED:
        up = tl.sum(up_sums, axis=1)
        if NORM:
            up *= factor
        found = found / (1.0 + tl.exp(-found)) * up
    if ADDS:
        found += tl.load(residual + row, mask=there, other=0.0).to(tl.float32)
    tl.store(out + row, found.to(out.dtype.element_ty), mask=there)


@kernel
def _few_rows(
    x, weight, out, size, rows, batch, GATED: tl.constexpr, ROWS: tl.constexpr, BATCH: tl.constexpr, DEPTH: tl.constexpr,
    SPLITS: tl.constexpr, EVEN: tl.constexpr, LINES: tl.constexpr, PER_LINE: tl.constexpr, WIDEN: tl.constexpr,
    OVERLAP: tl.constexpr,
):  # fmt: skip
    """One part of the sums of ROWS rows of the weight with all rows of x: out [SPLITS, batch, rows]."""
    part = tl.program_id(1)
    row, column, member = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, DEPTH), tl.arange(0, BATCH)
    # Parts are whole tiles, so that only the last one may be cut.
    width = tl.cdiv(tl.cdiv(size, DEPTH), SPLITS) * DEPTH
    first, last = part * width, tl.minimum(size, (part + 1) * width)
    there, wanted = row < rows, member < batch
    at = weight + row.to(tl.int64)[:, None] * size + column[None, :]
    up_at = at + rows.to(tl.int64) * size
    x_at = x + member[:, None] * size + column[None, :]
    if OVERLAP:
        # The first two pieces of each row come into the L2 cache meanwhile.
        line = tl.minimum(first + tl.arange(0, LINES) * PER_LINE, size - 1)
        ahead = weight + tl.minimum(row, rows - 1).to(tl.int64)[:, None] * size + line[None, :]
        tl.inline_asm_elementwise("prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [ahead], tl.int32, False, 1)
        if GATED:
            ahead += rows.to(tl.int64) * size
            tl.inline_asm_elementwise("prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [ahead], tl.int32, False, 1)
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    sums = tl.zeros([ROWS, BATCH], tl.float32)
    up_sums = tl.zeros([ROWS, BATCH], tl.float32)
    for start in range(first, last, DEPTH):
        if EVEN:
            piece = tl.load(at + start)
            values = tl.load(x_at + start, mask=wanted[:, None], other=0.0)
        else:
            inside = (start + column < size)[None, :]
            piece = tl.load(at + start, mask=there[:, None] & inside, other=0.0)
            values = tl.load(x_at + start, mask=wanted[:, None] & inside, other=0.0)
        if WIDEN:  # Triton's interpreter multiplies the bits of 16-bit numbers
            piece, values = piece.to(tl.float32), values.to(tl.float32)
        values = tl.trans(values)
        sums = tl.dot(piece, values, sums, input_precision="ieee")
        if GATED:
            up_mask = None if EVEN else there[:, None] & inside
            up_piece = tl.load(up_at + start, mask=up_mask, other=None if EVEN else 0.0)
            if WIDEN:
                up_piece = up_piece.to(tl.float32)
            up_sums = tl.dot(up_piece, values, up_sums, input_precision="ieee")
    if GATED:
        sums = sums / (1.0 + tl.exp(-sums)) * up_sums
    place = out + (part * batch + member).to(tl.int64)[None, :] * rows + row[:, None]
    tl.store(place, sums.to(out.dtype.element_ty), mask=there[:, None] & wanted[None, :])
