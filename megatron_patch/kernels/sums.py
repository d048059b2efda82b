"""The sum of what several ranks have computed: one pass, sums in float32, rounded once."""

from __future__ import annotations

import torch

from ._dispatch import ceil_div, kernel, tl, use_triton

_BLOCK = 4096


def sum_parts(own: torch.Tensor, parts: torch.Tensor, out: torch.Tensor, *, implementation: str | None = None) -> None:
    """out = own + parts[0] + parts[1] + …, added in this order.

    Args:
        own, out: contiguous, of one shape [...]; they may be the same.
        parts: contiguous [n, ...].

    Raises:
        ValueError: the shapes do not agree.
    """
    if own.shape != out.shape or parts.shape[1:] != own.shape:
        raise ValueError(f"own is {list(own.shape)}, out {list(out.shape)}: parts must be n of them, not {list(parts.shape)}.")
    if not use_triton(implementation, own):
        out.copy_(sum_parts_reference(own, parts))
    elif own.numel():
        size = own.numel()
        _sum_kernel[(ceil_div(size, _BLOCK),)](own, parts, out, size, PARTS=parts.shape[0], BLOCK=_BLOCK, num_warps=8)


def sum_parts_reference(own: torch.Tensor, parts: torch.Tensor) -> torch.Tensor:
    total = own.float()
    for part in parts:
        total = total + part.float()
    return total.to(own.dtype)


@kernel
def _sum_kernel(own_ptr, parts_ptr, out_ptr, size, PARTS: tl.constexpr, BLOCK: tl.constexpr):
    start = tl.program_id(0).to(tl.int64) * BLOCK
    at = start + tl.arange(0, BLOCK)
    mask = at < size
    total = tl.load(own_ptr + at, mask=mask, other=0.0).to(tl.float32)
    for _ in tl.static_range(PARTS):
        total += tl.load(parts_ptr + at, mask=mask, other=0.0).to(tl.float32)
        parts_ptr += size
    tl.store(out_ptr + at, total.to(out_ptr.dtype.element_ty), mask=mask)
