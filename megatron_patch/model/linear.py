"""core's parallel linear layers, with the functions of linear_functions.py and products whose algorithm is measured.

kernels/products.py says why they are measured.
"""

from __future__ import annotations

import megatron_patch.core.device  # noqa: F401  prepares megatron-core for this machine

from collections.abc import Callable
from typing import Any

import torch
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear

from megatron_patch.core.tensor_exchange import exchange_of
from megatron_patch.model.fp8_linear import column_product, row_product, takes_fp8
from megatron_patch.model.linear_functions import GatheredLinear, Linear, Products, SummedLinear

_SIXTEEN_BITS = Products()


def _fp32_gradient(weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor | None:
    """Where linear_functions.py adds the weight's gradient; None where core's own function is to compute."""
    main_grad = getattr(weight, "main_grad", None)
    if main_grad is None or main_grad.dtype != torch.float32 or not weight.requires_grad or not torch.is_grad_enabled():
        return None
    return main_grad if bias is None else None


def _linear(core: Callable[..., torch.Tensor], input: torch.Tensor, weight: torch.Tensor, kwargs: Any) -> torch.Tensor:
    main_grad = _fp32_gradient(weight, kwargs["bias"])
    if main_grad is None or kwargs["grad_output_buffer"] is not None:
        return core(input, weight, **kwargs)
    group = kwargs["tp_group"]
    if kwargs["sequence_parallel"]:
        return GatheredLinear.apply(input.contiguous(), weight, main_grad, _SIXTEEN_BITS, exchange_of(group), group.size())
    summed_over = group if kwargs["allreduce_dgrad"] else None
    return Linear.apply(input.contiguous(), weight, main_grad, _SIXTEEN_BITS, summed_over, True)


class ColumnLinear(ColumnParallelLinear):
    """Linear layer whose weight [out, in] is split over TP by its output."""

    def forward(self, input_: torch.Tensor, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
        """[S, B, in], or with sequence parallelism [S / TP, B, in] → ([S, B, out / TP]; no bias)."""
        if takes_fp8(self):
            return column_product(self, input_), None
        return super().forward(input_, *args, **kwargs)

    def _forward_impl(self, input: torch.Tensor, weight: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return _linear(super()._forward_impl, input, weight, kwargs)


class RowLinear(RowParallelLinear):
    """Linear layer whose weight [out, in] is split over TP by its input; core sums the ranks' outputs."""

    def _forward_impl(self, input: torch.Tensor, weight: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return _linear(super()._forward_impl, input, weight, kwargs)

    def forward(self, input_: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """[S, B, in / TP] → ([S, B, out], or with sequence parallelism [S / TP, B, out]; no bias)."""
        if takes_fp8(self):
            return row_product(self, input_), None
        main_grad = _fp32_gradient(self.weight, self.bias) if self.sequence_parallel else None
        if main_grad is None:
            return super().forward(input_)
        exchange = exchange_of(self.tp_group)
        return SummedLinear.apply(input_.contiguous(), self.weight, main_grad, _SIXTEEN_BITS, exchange, True), None
