"""`rms_norm.py` in plain PyTorch."""

from __future__ import annotations

import torch


def rms_norm_reference(x: torch.Tensor, weight: torch.Tensor, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    """y [..., H] in x's dtype and 1 / rms [rows] in float32; computed in float32."""
    x_fp32 = x.float()
    rstd = torch.rsqrt(x_fp32.square().mean(-1, keepdim=True) + eps)
    return (x_fp32 * rstd * weight.float()).to(x.dtype), rstd.flatten()


def rms_norm_backward_reference(dy, dresidual, x, weight, rstd) -> tuple[torch.Tensor, torch.Tensor]:
    """dx [..., H] in x's dtype and dweight [H] in float32, where x̂ = x · rstd is the normalized input.

    dx = rstd · (dy·w − x̂ · mean(x̂ · dy·w)) + dresidual (None: 0), dweight = Σ_rows dy · x̂.
    """
    rstd = rstd.view(*x.shape[:-1], 1)
    x_hat = x.float() * rstd
    dy_fp32 = dy.float()
    wdy = dy_fp32 * weight.float()
    dx = (wdy - x_hat * (x_hat * wdy).mean(-1, keepdim=True)) * rstd
    if dresidual is not None:
        dx += dresidual
    return dx.to(x.dtype), (dy_fp32 * x_hat).flatten(0, -2).sum(0)
