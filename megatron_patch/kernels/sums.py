"""The sum of what several ranks have computed: one pass, sums in float32, rounded once."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ._dispatch import ceil_div, kernel, tl, use_triton

MOST_APART = 3
_BLOCK = 4096


def sum_parts(
    own: torch.Tensor,
    parts: torch.Tensor,
    out: torch.Tensor,
    apart: Sequence[torch.Tensor] = (),
    *,
    implementation: str | None = None,
) -> None:
    """out = own + parts[0] + parts[1] + … + apart[0] + …, added in this order.

    Args:
        own, out: contiguous, of one shape [...]; they may be the same.
        parts: contiguous [n, ...].
        apart: at most `MOST_APART` more, each contiguous [...], which may lie in another GPU's memory.

    Raises:
        ValueError: the shapes do not agree, or there are too many.
    """
    if own.shape != out.shape or parts.shape[1:] != own.shape or any(part.shape != own.shape for part in apart):
        raise ValueError(f"own is {list(own.shape)}, out {list(out.shape)}: parts must be n of them, not {list(parts.shape)}.")
    if len(apart) > MOST_APART:
        raise ValueError(f"{len(apart)} parts lie apart; pass at most {MOST_APART}.")
    if not use_triton(implementation, own):
        out.copy_(sum_parts_reference(own, [*parts, *apart]))
    elif own.numel():
        size, others = own.numel(), (*apart, *[own] * (MOST_APART - len(apart)))
        _sum_kernel[(ceil_div(size, _BLOCK),)](
            own, parts, *others, out, size, PARTS=parts.shape[0], APART=len(apart), BLOCK=_BLOCK, num_warps=8
        )


def sum_parts_reference(own: torch.Tensor, parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """own + parts[0] + parts[1] + … in PyTorch: [...] each, summed in float32 and rounded to own's dtype."""
    total = own.float()
    for part in parts:
        total = total + part.float()
    return total.to(own.dtype)


@kernel
def _sum_kernel(
    own_ptr, parts_ptr, apart0_ptr, apart1_ptr, apart2_ptr, out_ptr, size,
    PARTS: tl.constexpr, APART: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    start = tl.program_id(0).to(tl.int64) * BLOCK
    at = start + tl.arange(0, BLOCK)
    mask = at < size
    total = tl.load(own_ptr + at, mask=mask, other=0.0).to(tl.float32)
    for _ in tl.static_range(PARTS):
        total += tl.load(parts_ptr + at, mask=mask, other=0.0).to(tl.float32)
        parts_ptr += size
    if APART > 0:
        total += tl.load(apart0_ptr + at, mask=mask, other=0.0).to(tl.float32)
    if APART > 1:
        total += tl.load(apart1_ptr + at, mask=mask, other=0.0).to(tl.float32)
    if APART > 2:
        total += tl.load(apart2_ptr + at, mask=mask, other=0.0).to(tl.float32)
    tl.store(out_ptr + at, total.to(out_ptr.dtype.element_ty), mask=mask)
