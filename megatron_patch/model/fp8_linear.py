"""The products of a linear layer in FP8, for linear_functions.py.

Activations and weights are E4M3. What a product gives is bf16, but for weight gradients, which are added to DDP's fp32
buffer as always. A matrix is cast where a product needs it, with the factor of its own largest number (kernels/fp8.py).
What is kept for the weight's gradient is the transposed FP8 copy: half the bytes that bf16 keeps.

Under sequence parallelism ranks exchange bf16 numbers and cast what has come.
"""

from __future__ import annotations

import megatron_patch.core.device  # noqa: F401  prepares megatron-core for this machine

from typing import Any

import torch
from megatron.core.tensor_parallel.mappings import reduce_from_tensor_model_parallel_region

from megatron_patch.core.fp8_weights import fp8_copy
from megatron_patch.core.tensor_exchange import exchange_of
from megatron_patch.core.weight_gradients import add_fp8_weight_gradient
from megatron_patch.kernels.fp8 import E4M3, E5M2, Cast, cast, noted_largest
from megatron_patch.kernels.products import rows_of, scaled_matmul
from megatron_patch.model.linear_functions import GatheredLinear, Linear, Products, SummedLinear

# Of gradients: their numbers differ by more powers of two than activations do, and E5M2 has more of them.
GRADIENTS = E5M2


def takes_fp8(layer: torch.nn.Module) -> bool:
    """Whether a layer's products are FP8 ones: in training, also in the first forward pass of AC full.

    Evaluations measure the weights that are saved, in bf16.
    """
    return layer.training and isinstance(layer.weight, torch.Tensor) and fp8_copy(layer.weight) is not None


def column_product(layer: Any, x: torch.Tensor) -> torch.Tensor:
    """The forward pass of core's ColumnParallelLinear: x [S, B, in] → [S, B, out / TP]."""
    weight, group, keeps = layer.weight, layer.tp_group, torch.is_grad_enabled()
    if layer.sequence_parallel:
        return GatheredLinear.apply(x.contiguous(), weight, weight.main_grad, _FP8, exchange_of(group), group.size())
    return Linear.apply(x.contiguous(), weight, weight.main_grad, _FP8, group if layer.allreduce_dgrad else None, keeps)


def row_product(layer: Any, x: torch.Tensor) -> torch.Tensor:
    """The forward pass of core's RowParallelLinear: x [S, B, in / TP] → [S, B, out], the ranks' sum."""
    weight, group, keeps = layer.weight, layer.tp_group, torch.is_grad_enabled()
    if layer.sequence_parallel:
        return SummedLinear.apply(x.contiguous(), weight, weight.main_grad, _FP8, exchange_of(group), keeps)
    partial = Linear.apply(x.contiguous(), weight, weight.main_grad, _FP8, None, keeps)
    # core's function would hand a gradient on as another tensor, on which its largest number is not noted.
    return partial if group.size() == 1 else reduce_from_tensor_model_parallel_region(partial, group=group)


class _Fp8Products(Products):
    """Products of casts. `kept` are the transposed copy of an input and its scale."""

    def input(self, x: torch.Tensor, *, values: bool = True, turned: bool = True) -> Any:
        return cast(rows_of(x), E4M3, values=values, turned=turned, cells=noted_largest(x))

    def gradient(self, dy: torch.Tensor, *, values: bool = True, turned: bool = True) -> Any:
        return cast(rows_of(dy.contiguous()), GRADIENTS, values=values, turned=turned, cells=noted_largest(dy))

    def rows(self, x: Any, rows: slice) -> Any:
        return x._replace(values=x.values[rows])

    def kept(self, x: Any) -> tuple[torch.Tensor, ...]:
        return x.turned, x.scale

    def forward(self, x: Any, weight: torch.Tensor, y: torch.Tensor) -> None:
        multiply(x, weight, y)

    def backward(self, dy: Any, weight: torch.Tensor, dx: torch.Tensor) -> None:
        multiply_back(dy, weight, dx)

    def add(self, weight: torch.nn.Parameter, kept: Any, dy: Any, main_grad: torch.Tensor) -> torch.Tensor:
        return add_fp8_weight_gradient(weight, Cast(None, *kept), dy, main_grad)


_FP8 = _Fp8Products()


def multiply(x: Cast, weight: torch.Tensor, out: torch.Tensor) -> None:
    """out [rows, out] = x [rows, in] · weightᵀ."""
    copy = fp8_copy(weight)
    assert copy is not None and copy.values is not None and x.values is not None
    scaled_matmul(x.values, copy.values.t(), out, x.scale, copy.scale)


def multiply_back(dy: Cast, weight: torch.Tensor, dx: torch.Tensor) -> None:
    """dx [rows, in] = dy [rows, out] · weight."""
    copy = fp8_copy(weight)
    assert copy is not None and copy.turned is not None and dy.values is not None
    scaled_matmul(dy.values, copy.turned.t(), dx, dy.scale, copy.scale)
