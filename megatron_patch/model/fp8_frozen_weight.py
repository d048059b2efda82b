"""A frozen weight whose products are FP8 ones: its 8-bit copies are cast once, before the run's first step.

The weight itself stays, in 16 bits: evaluations measure it, and checkpoints of random weights hold it. An adapter's own
products have 16 bits.
"""

from __future__ import annotations

import megatron_patch.core.device  # noqa: F401  prepares megatron-core for this machine

from typing import Any

import torch

from megatron_patch.kernels.fp8 import E4M3, cast
from megatron_patch.model.fp8_linear import GRADIENTS, multiply, multiply_back
from megatron_patch.model.frozen_products import FrozenWeight


class Fp8FrozenWeight(FrozenWeight):
    """A weight [out, in] that has FP8 copies (core/fp8_weights.py)."""

    def prepared(self, x: torch.Tensor) -> Any:
        """x [T, in] in E4M3, with one factor."""
        return cast(x, E4M3, turned=False)

    def part(self, prepared: Any, rows: slice) -> Any:
        """`rows` of x, with the factor of all of it."""
        return prepared._replace(values=prepared.values[rows])

    def product(self, prepared: Any, y: torch.Tensor) -> None:
        """y [T, out] = x · Wᵀ, of FP8 numbers."""
        multiply(prepared, self.weight, y)

    def input_gradient(self, dy: torch.Tensor, dx: torch.Tensor) -> None:
        """dx [T, in] = dy [T, out] · W, of FP8 numbers."""
        multiply_back(cast(dy, GRADIENTS, turned=False), self.weight, dx)
