"""The products of a layer, and what stands around them: norms, residual sums, SwiGLU.

A library's products for many rows, and the kernels of few rows (`kernels.thin_products`) for decoding. Which of those
is the fastest is measured (`generate.tuning`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F

from megatron_patch.generate.ranks import Ranks
from megatron_patch.kernels.products import matmul
from megatron_patch.kernels.rms_norm import add_rms_norm, rms_norm
from megatron_patch.kernels.swiglu import swiglu
from megatron_patch.kernels.thin_products import ONE_ROW, Tiling, product, product_add_norm, row_product

QKV, PROJECTION, GATE_UP, DOWN, OUTPUT = "qkv", "projection", "gate_up", "down", "output"


class Activations(NamedTuple):
    """[B, H] between two layers' halves, and with the norm that the next products ask for."""

    hidden: torch.Tensor
    norm: torch.Tensor | None  # [H], the norm's weight; None at a stage's end
    normed: torch.Tensor | None  # None where the product itself normalizes


@dataclass(frozen=True)
class LayerProducts:
    """How products are computed.

    Attributes:
        tilings: of the products that a kernel of few rows computes; a library computes the others.
        one_row: whether the kernels of one row compute all of them.
        measured: whether the library's algorithm is measured (`kernels.products`), which takes a second a shape.
    """

    ranks: Ranks
    epsilon: float
    tilings: Mapping[str, Tiling] = field(default_factory=dict)
    one_row: bool = False
    measured: bool = False

    def begin(self, hidden: torch.Tensor, norm: torch.Tensor) -> Activations:
        """What the first layer takes, of [B, H]."""
        return Activations(hidden, norm, None if self.one_row else rms_norm(hidden, norm, self.epsilon))

    def apply(
        self, name: str, x: Activations, weight: torch.Tensor, *, gated: bool = False, out_dtype: torch.dtype | None = None
    ) -> torch.Tensor:
        """The product with what is normalized, [B, R]; `gated`: SwiGLU of it, [B, R/2]."""
        tiling = self.tilings.get(name)
        if x.normed is None:
            assert tiling is not None, "the kernels of one row have a tiling each"
            return row_product(x.hidden, weight, norm=x.norm, eps=self.epsilon, gated=gated, out_dtype=out_dtype, tiling=tiling)
        if tiling is not None:
            return product(x.normed, weight, gated=gated, out_dtype=out_dtype, tiling=tiling)
        found = self._library(x.normed, weight)
        found = swiglu(found) if gated else found
        return found if out_dtype is None else found.to(out_dtype)

    def add(
        self, name: str, x: torch.Tensor, weight: torch.Tensor, residual: torch.Tensor, norm: torch.Tensor | None
    ) -> Activations:
        """residual [B, H] plus the product of x [B, K], and its norm if one follows."""
        tiling = self.tilings.get(name)
        if self.one_row:
            return Activations(row_product(x, weight, residual=residual, tiling=tiling or ONE_ROW), norm, None)
        if norm is None:
            return Activations(residual + self.ranks.reduce(self._library(x, weight)), None, None)
        if tiling is not None:
            hidden, normed = product_add_norm(x, weight, residual, norm, self.epsilon, tiling=tiling)
            return Activations(hidden, norm, normed)
        normed, hidden = add_rms_norm(self.ranks.reduce(self._library(x, weight)), residual, norm, self.epsilon)
        return Activations(hidden, norm, normed)

    def _library(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        if not self.measured:
            return F.linear(x, weight)
        return matmul(x, weight.t(), torch.empty(len(x), len(weight), dtype=x.dtype, device=x.device))
