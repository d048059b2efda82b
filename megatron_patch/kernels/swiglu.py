"""SwiGLU (Shazeer 2020, arXiv:2002.05202): silu(gate) · up, silu(x) = x · σ(x).

gate and up are one linear layer's output, packed as [..., 2F] with gate first: one product is faster than two halves of
it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ._dispatch import ceil_div, kernel, next_power_of_two, tl, use_triton
from .fp8 import CELLS, cells_to_fill, find_and_note, note_largest


def swiglu(packed: torch.Tensor, *, implementation: str | None = None) -> torch.Tensor:
    """packed [..., 2F], gate then up → silu(gate) · up [..., F], computed in float32.

    Only packed is saved. The backward computes σ(gate) again, because saving it too would keep another [..., F] in
    memory. It writes one new packed gradient.

    Raises:
        ValueError: the last dimension is odd.
    """
    if packed.shape[-1] % 2:
        raise ValueError(f"packed is {list(packed.shape)}; its last dimension holds gate and up of equal size and must be even.")
    return _SwiGLU.apply(packed, use_triton(implementation, packed))


def swiglu_reference(packed: torch.Tensor) -> torch.Tensor:
    """`swiglu` in PyTorch: [..., 2F] → [..., F]."""
    gate, up = packed.float().chunk(2, dim=-1)
    return (F.silu(gate) * up).to(packed.dtype)


def swiglu_backward_reference(dy: torch.Tensor, packed: torch.Tensor) -> torch.Tensor:
    """The packed gradient [..., 2F] for dy [..., F] and packed [..., 2F].

    dgate = dy · up · σ(gate) · (1 + gate · (1 − σ(gate))), dup = dy · silu(gate).
    """
    gate, up = packed.float().chunk(2, dim=-1)
    dy = dy.float()
    sigmoid = torch.sigmoid(gate)
    dgate = dy * up * sigmoid * (1 + gate * (1 - sigmoid))
    return torch.cat([dgate, dy * gate * sigmoid], dim=-1).to(packed.dtype)


class _SwiGLU(torch.autograd.Function):
    """`swiglu`."""

    @staticmethod
    def forward(ctx, packed, triton):
        ctx.save_for_backward(packed)
        ctx.triton = triton
        return _forward(packed) if triton else find_and_note(swiglu_reference(packed))

    @staticmethod
    def backward(ctx, dy):
        (packed,) = ctx.saved_tensors
        return (_backward(dy, packed) if ctx.triton else find_and_note(swiglu_backward_reference(dy, packed))), None


def _launch(packed):
    """(rows, F, grid, block). A program takes up to 2048 elements of a row, 16 for each thread of four warps."""
    ffn = packed.shape[-1] // 2
    rows = packed.numel() // (2 * ffn) if ffn else 0
    block = min(2048, next_power_of_two(max(ffn, 1)))
    return rows, ffn, (rows, ceil_div(ffn, block)), block


def _forward(packed):
    packed = packed.contiguous()
    rows, ffn, grid, block = _launch(packed)
    y, cells = packed.new_empty(*packed.shape[:-1], ffn), cells_to_fill(packed)
    if rows:
        _swiglu_kernel[grid](packed, y, cells, ffn, CELLS, block)
    return note_largest(y, cells)


def _backward(dy, packed):
    packed, dy = packed.contiguous(), dy.contiguous()
    rows, ffn, grid, block = _launch(packed)
    dpacked, cells = torch.empty_like(packed), cells_to_fill(packed)
    if rows:
        _swiglu_backward_kernel[grid](dy, packed, dpacked, cells, ffn, CELLS, block)
    return note_largest(dpacked, cells)


@kernel
def _swiglu_kernel(packed_ptr, y_ptr, cells_ptr, ffn, CELLS: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = columns < ffn
    gate = tl.load(packed_ptr + row * 2 * ffn + columns, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(packed_ptr + row * 2 * ffn + ffn + columns, mask=mask, other=0.0).to(tl.float32)
    y = (gate * tl.sigmoid(gate) * up).to(y_ptr.dtype.element_ty)
    tl.store(y_ptr + row * ffn + columns, y, mask=mask)
    if cells_ptr is not None:  # columns beyond the row are zeros
        tl.atomic_max(cells_ptr + row % CELLS, tl.max(tl.abs(y.to(tl.float32)), axis=0), sem="relaxed")


@kernel
def _swiglu_backward_kernel(dy_ptr, packed_ptr, dpacked_ptr, cells_ptr, ffn, CELLS: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = columns < ffn
    gates = row * 2 * ffn + columns
    gate = tl.load(packed_ptr + gates, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(packed_ptr + gates + ffn, mask=mask, other=0.0).to(tl.float32)
    dy = tl.load(dy_ptr + row * ffn + columns, mask=mask, other=0.0).to(tl.float32)
    sigmoid = tl.sigmoid(gate)
    dgate = (dy * up * sigmoid * (1.0 + gate * (1.0 - sigmoid))).to(dpacked_ptr.dtype.element_ty)
    dup = (dy * gate * sigmoid).to(dpacked_ptr.dtype.element_ty)
    tl.store(dpacked_ptr + gates, dgate, mask=mask)
    tl.store(dpacked_ptr + gates + ffn, dup, mask=mask)
    if cells_ptr is not None:
        most = tl.maximum(tl.abs(dgate.to(tl.float32)), tl.abs(dup.to(tl.float32)))
        tl.atomic_max(cells_ptr + row % CELLS, tl.max(most, axis=0), sem="relaxed")
