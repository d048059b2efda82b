"""Weight gradients accumulated in float32: weight_grad (+)= dyᵀ x, what Apex's wgrad_gemm_accum_fp32 computes.

cuBLAS with a measured algorithm is the fastest that was tried, also against the product in Triton that
benchmarks/wgrad_gemm.py keeps for comparison, so there is no kernel here.
"""

from __future__ import annotations

import torch

from .products import matmul


def accumulate_weight_grad(weight_grad: torch.Tensor, x: torch.Tensor, dy: torch.Tensor, *, overwrite: bool = False) -> None:
    """weight_grad [out, in] float32 += dyᵀ x, or = with overwrite; x [tokens, in], dy [tokens, out] of one dtype.

    Products and sums are float32 and never rounded to the inputs' dtype.

    Raises:
        ValueError: shapes or dtypes do not agree.
    """
    _check(weight_grad, x, dy)
    matmul(dy.t(), x, weight_grad, add=not overwrite)


def _check(weight_grad, x, dy) -> None:
    if weight_grad.dtype != torch.float32:
        raise ValueError(f"weight_grad is {weight_grad.dtype}; gradients accumulate in torch.float32.")
    if x.dtype != dy.dtype:
        raise ValueError(f"x is {x.dtype} and dy {dy.dtype}; both must have one dtype.")
    if x.dim() != 2 or dy.dim() != 2 or x.shape[0] != dy.shape[0]:
        raise ValueError(f"x is {list(x.shape)} and dy {list(dy.shape)}; they must be [tokens, in] and [tokens, out].")
    if tuple(weight_grad.shape) != (dy.shape[1], x.shape[1]):
        raise ValueError(
            f"weight_grad is {list(weight_grad.shape)}; for these x and dy it must be [{dy.shape[1]}, {x.shape[1]}]."
        )
