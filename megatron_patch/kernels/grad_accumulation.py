"""Weight gradients accumulated in float32: weight_grad (+)= dyᵀ x, what Apex's wgrad_gemm_accum_fp32 computes.

There is no kernel here. cuBLASLt with a measured algorithm was the fastest of all that was tried;
benchmarks/wgrad_gemm.py keeps a product in Triton to compare with.
"""

from __future__ import annotations

import torch

from .products import matmul


def accumulate_weight_grad(weight_grad: torch.Tensor, x: torch.Tensor, dy: torch.Tensor, *, overwrite: bool = False) -> None:
    """weight_grad [out, in] += dyᵀ x, for x [tokens, in] and dy [tokens, out] of one dtype.

    Products and sums are float32 and never rounded to the inputs' dtype: over many micro-batches a 16-bit sum loses
    what is small beside it.

    Args:
        weight_grad: float32, contiguous.
        overwrite: write the product instead of adding it. A step's first micro-batch does so, and no zeroing is needed.

    Raises:
        ValueError: shapes or dtypes do not agree.
    """
    _check(weight_grad, x, dy)
    matmul(dy.t(), x, weight_grad, add=not overwrite)


def _check(weight_grad, x, dy) -> None:
    """ValueError for other shapes or dtypes than `accumulate_weight_grad` takes."""
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
