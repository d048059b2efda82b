"""Which classes a layer's four linear layers have: trained whole, or frozen with adapters."""

from __future__ import annotations

import megatron_patch.core.device  # noqa: F401  prepares megatron-core for this machine

from dataclasses import dataclass

from megatron_patch.formats.peft_adapter import LoraConfig
from megatron_patch.llama.fused_layers import fused_layers
from megatron_patch.llama.model_config import LlamaConfig
from megatron_patch.model.linear import ColumnLinear, RowLinear
from megatron_patch.model.lora import LoraColumnLinear, LoraRowLinear, over


@dataclass(frozen=True)
class LinearLayers:
    """The classes."""

    qkv: type = ColumnLinear
    projection: type = RowLinear
    gate_up: type = ColumnLinear
    down: type = RowLinear


def linear_layers(model: LlamaConfig, tp: int, lora: LoraConfig | None) -> LinearLayers:
    """The classes for `model`, split over `tp` ranks; `lora` None trains all weights."""
    if lora is None:
        return LinearLayers()
    kinds = (LoraColumnLinear, LoraRowLinear, LoraColumnLinear, LoraRowLinear)
    return LinearLayers(*(over(kind, lora, fused) for kind, fused in zip(kinds, fused_layers(model, tp))))
