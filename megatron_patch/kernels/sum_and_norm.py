"""What a product of few rows left in parts comes together, with the residual and the norm (`thin_products`)."""

from __future__ import annotations

import torch

from ._dispatch import kernel, launch_options, next_power_of_two, tl


def sum_and_norm(
    residual: torch.Tensor, norm: torch.Tensor, eps: float, partial: torch.Tensor, *, overlap: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """(residual [B, R] + Σ partial fp32 [parts, B, R], its RMSNorm with the weight `norm` [R])."""
    found, normed = torch.empty_like(residual), torch.empty_like(residual)
    batch, rows = residual.shape
    _sum_and_norm[(batch,)](
        partial, residual, norm, found, normed, eps, rows, batch, PARTS=partial.shape[0], BLOCK=next_power_of_two(rows),
        OVERLAP=overlap, num_warps=8, **launch_options(residual, overlap),
    )  # fmt: skip
    return found, normed


@kernel
def _sum_and_norm(
    partial, residual, norm, found, normed, eps, size, batch, PARTS: tl.constexpr, BLOCK: tl.constexpr, OVERLAP: tl.constexpr
):
    """One row: what was cut comes together, is added, rounded and normalized."""
    row, column = tl.program_id(0), tl.arange(0, BLOCK)
    there = column < size
    weight = tl.load(norm + column, mask=there, other=0.0).to(tl.float32)
    if OVERLAP:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    total = tl.load(residual + row * size + column, mask=there, other=0.0).to(tl.float32)
    for part in tl.static_range(PARTS):
        total += tl.load(partial + (part * batch + row) * size + column, mask=there, other=0.0)
    rounded = total.to(found.dtype.element_ty)
    tl.store(found + row * size + column, rounded, mask=there)
    total = rounded.to(tl.float32)
    factor = 1.0 / tl.sqrt(tl.sum(total * total, axis=0) / size + eps)
    tl.store(normed + row * size + column, (total * factor * weight).to(normed.dtype.element_ty), mask=there)
