"""RMSNorm (Zhang & Sennrich 2019, arXiv:1910.07467): y = x / sqrt(mean(x²) + eps) · weight, fused with residual sums.

Activations may have any leading shape; the last dimension is H. The norm is computed in float32, and the result has the
dtype of x. Two things are saved for the backward: the norm's input, and 1 / rms as one float32 number a row.

`weight_grad` is a float32 tensor [H], where a function takes it. The backward adds the weight's gradient to it in one
kernel, where autograd would take three. autograd itself then gets a tensor of undefined content, since it calls the
hooks on a gradient only if it gets one. DDP's hook is one: it counts which gradients are ready.
"""

from __future__ import annotations

import torch

from ._dispatch import ceil_div, kernel, multiprocessors, next_power_of_two, tl, use_triton
from ._rms_norm_reference import rms_norm_backward_reference, rms_norm_reference
from .fp8 import CELLS, cells_to_fill, find_and_note, note_largest

# The backward runs one program on each multiprocessor, so that few partial sums of dweight are written. With no other
# program beside it, nothing hides the time of its loads. So it keeps the loads of three rows of x and dy in flight, if
# they fit into this many bytes of shared memory.
PIPELINE_BYTES = 196608


def rms_norm(
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    *,
    weight_grad: torch.Tensor | None = None,
    implementation: str | None = None,
) -> torch.Tensor:
    """RMSNorm over the last dimension: x [..., H], weight [H] → y [..., H].

    Raises:
        ValueError: weight is not [H], or `weight_grad` is not float32 [H].
    """
    _check(x, weight, weight_grad)
    return _RMSNorm.apply(x, weight, eps, weight_grad, use_triton(implementation, x))


def rms_norm_residual(
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    *,
    weight_grad: torch.Tensor | None = None,
    implementation: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(RMSNorm(x), x). The backward adds the gradients of both outputs in the norm's own kernel.

    x [..., H], weight [H] → y and residual, each [..., H]. The residual is x's memory; nobody may write it in place.

    Raises:
        ValueError: weight is not [H], or `weight_grad` is not float32 [H].
    """
    _check(x, weight, weight_grad)
    return _RMSNormResidual.apply(x, weight, eps, weight_grad, use_triton(implementation, x))


def add_rms_norm(
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    *,
    weight_grad: torch.Tensor | None = None,
    implementation: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(RMSNorm(x + residual), x + residual), each [..., H]. The sum is rounded to x's dtype before it is normalized.

    x and residual [..., H] of one dtype, weight [H]. Both inputs get the same tensor as their gradient.

    Raises:
        ValueError: shapes or dtypes do not agree.
    """
    _check(x, weight, weight_grad)
    if x.shape != residual.shape or x.dtype != residual.dtype:
        raise ValueError(
            f"residual is {residual.dtype} {list(residual.shape)} but x is {x.dtype} {list(x.shape)}; "
            "they are added and must be alike."
        )
    return _AddRMSNorm.apply(x, residual, weight, eps, weight_grad, use_triton(implementation, x))


class _RMSNorm(torch.autograd.Function):
    """`rms_norm`."""

    @staticmethod
    def forward(ctx, x, weight, eps, weight_grad, triton):
        y, _, rstd = _forward(x, None, weight, eps, triton)
        ctx.save_for_backward(x, weight, rstd)
        ctx.weight_grad, ctx.triton = weight_grad, triton
        return y

    @staticmethod
    def backward(ctx, dy):
        dx, dweight = _backward(ctx, dy, None)
        return dx, dweight, None, None, None


class _RMSNormResidual(torch.autograd.Function):
    """`rms_norm_residual`. A gradient that did not come stays None: zeros would cost a tensor and a read of it."""

    @staticmethod
    def forward(ctx, x, weight, eps, weight_grad, triton):
        y, _, rstd = _forward(x, None, weight, eps, triton)
        ctx.save_for_backward(x, weight, rstd)
        ctx.weight_grad, ctx.triton = weight_grad, triton
        ctx.set_materialize_grads(False)
        return y, x

    @staticmethod
    def backward(ctx, dy, dresidual):
        if dy is None:
            return dresidual, None, None, None, None
        dx, dweight = _backward(ctx, dy, dresidual)
        return dx, dweight, None, None, None


class _AddRMSNorm(torch.autograd.Function):
    """`add_rms_norm`. It saves the sum, which is the norm's input, and neither of the two summands."""

    @staticmethod
    def forward(ctx, x, residual, weight, eps, weight_grad, triton):
        y, total, rstd = _forward(x, residual, weight, eps, triton)
        ctx.save_for_backward(total, weight, rstd)
        ctx.weight_grad, ctx.triton = weight_grad, triton
        ctx.set_materialize_grads(False)
        return y, total

    @staticmethod
    def backward(ctx, dy, dtotal):
        if dy is None:
            return dtotal, dtotal, None, None, None, None
        dx, dweight = _backward(ctx, dy, dtotal)
        return dx, dx, dweight, None, None, None


def _check(x: torch.Tensor, weight: torch.Tensor, weight_grad: torch.Tensor | None) -> None:
    """ValueError unless weight is [H] and weight_grad None or float32 [H]."""
    if weight.shape != x.shape[-1:]:
        raise ValueError(
            f"weight is {list(weight.shape)}; for x {list(x.shape)} it must be [{x.shape[-1]}], "
            "one number for each element of the last dimension."
        )
    if weight_grad is not None and (weight_grad.shape != weight.shape or weight_grad.dtype != torch.float32):
        raise ValueError(
            f"weight_grad is {weight_grad.dtype} {list(weight_grad.shape)}; "
            f"it must be torch.float32 and, like weight, {list(weight.shape)}."
        )


def _forward(x, residual, weight, eps, triton):
    """(y, the norm's input, 1 / rms [rows]). The input is x, or x + residual where there is a residual."""
    if not triton:
        total = x if residual is None else x + residual
        y, rstd = rms_norm_reference(total, weight, eps)
        return find_and_note(y), total, rstd
    x = x.contiguous()
    h = x.shape[-1]
    rows = x.numel() // h
    y = torch.empty_like(x)
    total = x if residual is None else torch.empty_like(x)
    rstd, cells = torch.empty(rows, dtype=torch.float32, device=x.device), cells_to_fill(x)
    if rows:
        residual = x if residual is None else residual.contiguous()
        block = next_power_of_two(h)
        _rms_norm_kernel[(rows,)](
            x, residual, weight, y, total, rstd, cells, h, eps, total is not x, CELLS, block, num_warps=_warps(block)
        )
    return note_largest(y, cells), total, rstd


def _backward(ctx, dy, dresidual):
    """(dx, dweight). With ctx.weight_grad, dweight is added to that, and the returned dweight has undefined content."""
    x, weight, rstd = ctx.saved_tensors
    weight_grad = ctx.weight_grad
    target = torch.zeros_like(weight, dtype=torch.float32) if weight_grad is None else weight_grad
    if ctx.triton:
        dx = _launch_backward(dy, dresidual, x, weight, rstd, target)
    else:
        dx, dweight = rms_norm_backward_reference(dy, dresidual, x, weight, rstd)
        find_and_note(dx)
        target += dweight
    return dx, torch.empty_like(weight) if weight_grad is not None else target.to(weight.dtype)


def _launch_backward(dy, dresidual, x, weight, rstd, weight_grad):
    """Return dx, and add dweight to weight_grad [H].

    Two kernels: one writes each program's part of dweight to `partial` [programs, H], one adds the parts up.
    """
    x, dy = x.contiguous(), dy.contiguous()
    h = x.shape[-1]
    rows = x.numel() // h
    dx = torch.empty_like(x)
    if not rows:
        return dx
    rows_each = ceil_div(rows, multiprocessors(x.device))
    programs = ceil_div(rows, rows_each)
    partial, cells = torch.empty(programs, h, dtype=torch.float32, device=x.device), cells_to_fill(x)
    incoming = dy if dresidual is None else dresidual.contiguous()  # dy in its place is not read
    block = next_power_of_two(h)
    stages = 3 if 2 * 3 * block * x.element_size() <= PIPELINE_BYTES else 1
    _rms_norm_backward_kernel[(programs,)](
        dy, incoming, x, weight, rstd, dx, partial, cells, rows, h, rows_each, stages,
        dresidual is not None, CELLS, block, num_warps=_warps(block),
    )  # fmt: skip
    columns, rows_block = min(64, block), 64
    _rms_norm_weight_kernel[(ceil_div(h, columns),)](
        partial, weight_grad, programs, h, ceil_div(programs, rows_block), rows_block, columns
    )
    return note_largest(dx, cells)


def _warps(block: int) -> int:
    """512 elements a warp, 16 a thread: enough loads in flight, and few enough values that no register spills."""
    return min(16, max(1, block // 512))


@kernel
def _rms_norm_kernel(
    x_ptr, residual_ptr, weight_ptr, y_ptr, total_ptr, rstd_ptr, cells_ptr, h, eps,
    ADD: tl.constexpr, CELLS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    columns = tl.arange(0, BLOCK)
    mask = columns < h
    offsets = row.to(tl.int64) * h + columns
    x = tl.load(x_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
    if ADD:
        total = (x + tl.load(residual_ptr + offsets, mask=mask, other=0.0).to(tl.float32)).to(total_ptr.dtype.element_ty)
        tl.store(total_ptr + offsets, total, mask=mask)
        # Normalize the rounded sum: it is what is stored, and the backward computes x̂ from it.
        x = total.to(tl.float32)
    rstd = 1.0 / tl.sqrt(tl.sum(x * x, axis=0) / h + eps)
    weight = tl.load(weight_ptr + columns, mask=mask, other=0.0).to(tl.float32)
    tl.store(rstd_ptr + row, rstd)
    y = (x * rstd * weight).to(y_ptr.dtype.element_ty)
    tl.store(y_ptr + offsets, y, mask=mask)
    if cells_ptr is not None:  # columns beyond the row are zeros
        tl.atomic_max(cells_ptr + row % CELLS, tl.max(tl.abs(y.to(tl.float32)), axis=0), sem="relaxed")


@kernel
def _rms_norm_backward_kernel(
    dy_ptr, dresidual_ptr, x_ptr, weight_ptr, rstd_ptr, dx_ptr, partial_ptr, cells_ptr, rows, h,
    ROWS_EACH: tl.constexpr, STAGES: tl.constexpr, ADD: tl.constexpr, CELLS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    columns = tl.arange(0, BLOCK)
    mask = columns < h
    weight = tl.load(weight_ptr + columns, mask=mask, other=0.0).to(tl.float32)
    # A program takes ROWS_EACH rows and sums its part of dweight in registers. The next kernel adds up the parts in a
    # fixed order. Atomic additions would need no second kernel, but their order and last digits change from run to run.
    dweight = tl.zeros([BLOCK], dtype=tl.float32)
    most = tl.zeros([BLOCK], dtype=tl.float32)
    for i in tl.range(0, ROWS_EACH, num_stages=STAGES):
        row = program * ROWS_EACH + i
        offsets = row.to(tl.int64) * h + columns
        mask = columns < tl.where(row < rows, h, 0)
        x = tl.load(x_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
        dy = tl.load(dy_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
        rstd = tl.load(rstd_ptr + row, mask=row < rows, other=0.0)
        x_hat = x * rstd
        dweight += dy * x_hat
        wdy = dy * weight
        dx = (wdy - x_hat * (tl.sum(x_hat * wdy, axis=0) / h)) * rstd
        if ADD:
            dx += tl.load(dresidual_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
        dx = dx.to(dx_ptr.dtype.element_ty)
        tl.store(dx_ptr + offsets, dx, mask=mask)
        if cells_ptr is not None:
            most = tl.maximum(most, tl.abs(dx.to(tl.float32)))
    if cells_ptr is not None:
        tl.atomic_max(cells_ptr + program % CELLS, tl.max(most, axis=0), sem="relaxed")
    tl.store(partial_ptr + program.to(tl.int64) * h + columns, dweight, mask=columns < h)


@kernel
def _rms_norm_weight_kernel(
    partial_ptr, grad_ptr, programs, h, TURNS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):  # fmt: skip
    """grad [H] += the sum of partial [programs, H] over its rows; a program takes COLUMNS columns, ROWS rows a turn."""
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros([ROWS, COLUMNS], dtype=tl.float32)
    for i in range(0, TURNS):
        rows = i * ROWS + tl.arange(0, ROWS)
        mask = (rows < programs)[:, None] & (columns < h)[None, :]
        total += tl.load(partial_ptr + rows[:, None] * h + columns[None, :], mask=mask, other=0.0)
    before = tl.load(grad_ptr + columns, mask=columns < h, other=0.0)
    tl.store(grad_ptr + columns, before + tl.sum(total, axis=0), mask=columns < h)
