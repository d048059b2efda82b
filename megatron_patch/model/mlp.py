"""The gated feed-forward block of LLaMA: core's parallel linear layers around this project's SwiGLU."""

from __future__ import annotations

import megatron_patch.core.device  # noqa: F401  prepares megatron-core for this machine

from typing import Any

import torch
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.mlp import MLP, MLPSubmodules

from megatron_patch.kernels.swiglu import swiglu
from megatron_patch.model.linear import ColumnLinear, RowLinear


class LlamaMLP(MLP):
    """down(silu(gate(x)) · up(x)) (Shazeer 2020, arXiv:2002.05202). gate and up are one product, of width 2F.

    Attributes:
        gate_up, down: the classes of its two layers. core makes this module from a class, so a subclass says others.
    """

    gate_up: type = ColumnLinear
    down: type = RowLinear

    def __init__(self, config: TransformerConfig, **_: Any) -> None:
        """From 0.18 on core also passes its process groups and a name; without them core's MLP finds the same."""
        layers = MLPSubmodules(linear_fc1=self.gate_up, linear_fc2=self.down)
        super().__init__(config, layers, ffn_hidden_size=config.ffn_hidden_size)

    def forward(self, hidden_states: torch.Tensor, **_: Any) -> tuple[torch.Tensor, None]:
        """[S, B, H] → ([S, B, H], None, since there is no bias)."""
        gate_and_up, _ = self.linear_fc1(hidden_states)
        return self.linear_fc2(swiglu(gate_and_up))
