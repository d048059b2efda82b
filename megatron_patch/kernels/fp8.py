"""Numbers of 8 bits for matrix products: a matrix cast with one factor, its transpose, and its largest number.

Hopper's tensor cores multiply FP8 matrices that are contiguous along the sum. A matrix [tokens, width] is summed along
its width in one product of a linear layer and along its tokens in another. So the kernel that casts writes both copies.

The factor is that of the current numbers: their largest becomes the largest of the dtype. It takes a pass over the
matrix, unless the kernel that made the matrix has found the largest number already.

Nothing is clamped. The largest number, multiplied by its own factor, is off by a rounding and is rounded to FP8's
largest. Infinities and NaNs become NaNs, so a gradient's norm shows them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from ._dispatch import ceil_div, kernel, multiprocessors, tl, use_triton

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
LARGEST = {E4M3: 448.0, E5M2: 57344.0}
# A maximum is kept in so many places, of which each program takes one: on one place many programs would wait.
CELLS = 64
_BLOCK = 4096  # elements that a program looks at in a turn for the largest
_ROWS, _COLUMNS, _WARPS = 128, 128, 8  # of the tile that a program casts


_noting = False


class Cast(NamedTuple):
    """A matrix [rows, width] in FP8; a number is its FP8 number times `scale`.

    Attributes:
        values: [rows, width], or None where it was not asked for.
        turned: the transpose, [width, rows], contiguous; or None.
        scale: float32 [1].
    """

    values: torch.Tensor | None
    turned: torch.Tensor | None
    scale: torch.Tensor


def largest(x: torch.Tensor, *, out: torch.Tensor | None = None, implementation: str | None = None) -> torch.Tensor:
    """float32 [CELLS], whose maximum is that of |x|; x is contiguous. The host does not wait for the device.

    Args:
        out: zeros to write instead of new memory.
    """
    if not use_triton(implementation, x):
        most = x.detach().abs().amax().float()
        return most.expand(CELLS) if out is None else out.copy_(most)
    cells = torch.zeros(CELLS, dtype=torch.float32, device=x.device) if out is None else out
    if x.numel():
        programs = min(ceil_div(x.numel(), _BLOCK), 4 * multiprocessors(x.device))
        _largest_kernel[(programs,)](x, cells, x.numel(), ceil_div(x.numel(), programs * _BLOCK), CELLS, _BLOCK, num_warps=8)
    return cells


def cast(
    x: torch.Tensor,
    dtype: torch.dtype,
    *,
    values: bool = True,
    turned: bool = True,
    cells: torch.Tensor | None = None,
    out: Cast | None = None,
    implementation: str | None = None,
) -> Cast:
    """x [rows, width] in FP8, with one factor for all of it.

    Args:
        x: contiguous, of any float dtype.
        dtype: `E4M3` or `E5M2`.
        values, turned: which copies to make.
        cells: what `largest` returns for x; None: it is found here, in a pass of its own, unless it was noted on x.
        out: a result of the same kind, to be written again.

    Raises:
        ValueError: x is no contiguous matrix, or the dtype is another.
    """
    if x.dim() != 2 or not x.is_contiguous() or dtype not in LARGEST:
        raise ValueError(f"x is {list(x.shape)}, strides {x.stride()}, to be {dtype}; a contiguous matrix becomes E4M3 or E5M2.")
    if cells is None:
        cells = noted_largest(x)
    if cells is None:
        cells = largest(x, implementation=implementation)
    out = room(x, dtype, values=values, turned=turned) if out is None else out
    if not use_triton(implementation, x):
        _cast_reference(x, dtype, cells, out)
    elif x.numel():
        rows, width = x.shape
        grid = (ceil_div(rows, _ROWS), ceil_div(width, _COLUMNS))
        _cast_kernel[grid](
            x, cells, out.values, out.turned, out.scale, rows, width, LARGEST[dtype], CELLS, _ROWS, _COLUMNS, num_warps=_WARPS
        )
    return out


def cast_part(x: torch.Tensor, cells: torch.Tensor, out: torch.Tensor, *, implementation: str | None = None) -> None:
    """Cast some numbers x [n] of a matrix to `out` [n]; the matrix has the `largest` `cells`."""
    if not use_triton(implementation, x):
        out.copy_((x.float() * _factors(cells, out.dtype)[1]).to(out.dtype))
    elif x.numel():
        grid = (ceil_div(x.numel(), _BLOCK),)
        _cast_part_kernel[grid](x, cells, out, x.numel(), LARGEST[out.dtype], CELLS, _BLOCK, num_warps=8)


def complete(out: Cast, cells: torch.Tensor, *, implementation: str | None = None) -> None:
    """Write transpose and scale of a cast whose `values` are there; its matrix has the `largest` `cells`."""
    assert out.values is not None and out.turned is not None
    if not use_triton(implementation, out.values):
        out.turned.copy_(out.values.t())
        out.scale.copy_(_factors(cells, out.values.dtype)[0])
    elif out.values.numel():
        rows, width = out.values.shape
        grid = (ceil_div(rows, _ROWS), ceil_div(width, _COLUMNS))
        values, turned = out.values.view(torch.uint8), out.turned.view(torch.uint8)
        most = LARGEST[out.values.dtype]
        _complete_kernel[grid](values, cells, turned, out.scale, rows, width, most, CELLS, _ROWS, _COLUMNS, num_warps=_WARPS)


def note_largest_numbers(on: bool) -> None:
    """Whether from now on the kernels between products note the largest number of what they write: PR fp8 wants it."""
    global _noting
    _noting = on


def cells_to_fill(x: torch.Tensor) -> torch.Tensor | None:
    """Zeros [CELLS] on x's device, in which a kernel is to leave a maximum; None where nobody wants it."""
    return torch.zeros(CELLS, dtype=torch.float32, device=x.device) if _noting else None


def note_largest(x: torch.Tensor, cells: torch.Tensor | None) -> torch.Tensor:
    """Note on x that `cells` hold its largest number; nothing for None. Returns x."""
    if cells is not None:
        x.largest_cells = cells, x._version  # type: ignore[attr-defined]  # a mark of this module's own
    return x


def find_and_note(x: torch.Tensor) -> torch.Tensor:
    """`note_largest` by PyTorch, where it is wanted: what the references of kernels do. Returns x."""
    return note_largest(x, largest(x, implementation="torch")) if _noting else x


def noted_largest(x: torch.Tensor) -> torch.Tensor | None:
    """The cells that were noted on x, unless it was written since: autograd may have added to it."""
    cells, version = getattr(x, "largest_cells", (None, 0))
    return cells if version == x._version else None


def numbers(cast: Cast) -> torch.Tensor:
    """The matrix [rows, width] that a `Cast` stands for, in float32, from whichever copy there is."""
    copy = cast.values if cast.values is not None else None if cast.turned is None else cast.turned.t()
    assert copy is not None, "a cast has one copy at least"
    return copy.float() * cast.scale


def room(x: torch.Tensor, dtype: torch.dtype, *, values: bool = True, turned: bool = True) -> Cast:
    """Uninitialized memory for a cast of x [rows, width]."""
    rows, width = x.shape
    scale = torch.empty(1, dtype=torch.float32, device=x.device)
    return Cast(
        torch.empty(rows, width, dtype=dtype, device=x.device) if values else None,
        torch.empty(width, rows, dtype=dtype, device=x.device) if turned else None,
        scale,
    )


def _factors(cells: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """(scale, its inverse) of a matrix with these `largest` cells; float32, 0-dimensional."""
    most = cells.amax()
    empty, limit = most == 0, torch.full_like(most, LARGEST[dtype])  # torch divides by a Python number less exactly
    return torch.where(empty, 1.0, most / limit), torch.where(empty, 1.0, limit / most)


def _cast_reference(x: torch.Tensor, dtype: torch.dtype, cells: torch.Tensor, out: Cast) -> None:
    """`cast` in PyTorch, in float32."""
    scale, factor = _factors(cells, dtype)
    out.scale.copy_(scale)
    rounded = (x.float() * factor).to(dtype)
    if out.values is not None:
        out.values.copy_(rounded)
    if out.turned is not None:
        out.turned.copy_(rounded.t())


@kernel
def _largest_kernel(x_ptr, cells_ptr, count, TURNS: tl.constexpr, CELLS: tl.constexpr, BLOCK: tl.constexpr):
    program = tl.program_id(0)
    most = tl.zeros([BLOCK], dtype=tl.float32)
    for turn in range(0, TURNS):
        offsets = (turn * tl.num_programs(0) + program).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + offsets, mask=offsets < count, other=0.0).to(tl.float32)
        most = tl.maximum(most, tl.abs(x))
    tl.atomic_max(cells_ptr + program % CELLS, tl.max(most, axis=0), sem="relaxed")


@kernel
def _cast_kernel(
    x_ptr, cells_ptr, values_ptr, turned_ptr, scale_ptr, rows, width,
    LARGEST: tl.constexpr, CELLS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    most = tl.max(tl.load(cells_ptr + tl.arange(0, CELLS)), axis=0)
    factor = tl.where(most == 0.0, 1.0, tl.div_rn(LARGEST, most))
    if (tl.program_id(0) == 0) & (tl.program_id(1) == 0):
        tl.store(scale_ptr, tl.where(most == 0.0, 1.0, tl.div_rn(most, LARGEST)))
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    mask = (row < rows)[:, None] & (column < width)[None, :]
    offsets = row.to(tl.int64)[:, None] * width + column[None, :]
    x = tl.load(x_ptr + offsets, mask=mask, other=0.0).to(tl.float32) * factor
    if values_ptr is not None:
        tl.store(values_ptr + offsets, x.to(values_ptr.dtype.element_ty), mask=mask)
    if turned_ptr is not None:
        turned = tl.trans(x.to(turned_ptr.dtype.element_ty))
        mask = (column < width)[:, None] & (row < rows)[None, :]
        tl.store(turned_ptr + column.to(tl.int64)[:, None] * rows + row[None, :], turned, mask=mask)


@kernel
def _cast_part_kernel(x_ptr, cells_ptr, out_ptr, count, LARGEST: tl.constexpr, CELLS: tl.constexpr, BLOCK: tl.constexpr):
    most = tl.max(tl.load(cells_ptr + tl.arange(0, CELLS)), axis=0)
    factor = tl.where(most == 0.0, 1.0, tl.div_rn(LARGEST, most))
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offsets, mask=offsets < count, other=0.0).to(tl.float32) * factor
    tl.store(out_ptr + offsets, x.to(out_ptr.dtype.element_ty), mask=offsets < count)


@kernel
def _complete_kernel(
    values_ptr, cells_ptr, turned_ptr, scale_ptr, rows, width,
    LARGEST: tl.constexpr, CELLS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    if (tl.program_id(0) == 0) & (tl.program_id(1) == 0):
        most = tl.max(tl.load(cells_ptr + tl.arange(0, CELLS)), axis=0)
        tl.store(scale_ptr, tl.where(most == 0.0, 1.0, tl.div_rn(most, LARGEST)))
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    mask = (row < rows)[:, None] & (column < width)[None, :]
    values = tl.load(values_ptr + row.to(tl.int64)[:, None] * width + column[None, :], mask=mask, other=0)
    mask = (column < width)[:, None] & (row < rows)[None, :]
    tl.store(turned_ptr + column.to(tl.int64)[:, None] * rows + row[None, :], tl.trans(values), mask=mask)
