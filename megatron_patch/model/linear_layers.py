"""Which classes a layer's four linear layers have: trained whole, or frozen with adapters."""

from __future__ import annotations

import megatron_patch.core.device  # noqa: F401  prepares megatron-core for this machine

from dataclasses import dataclass

from megatron_patch.formats.peft_adapter import ATTENTION_TARGETS, LoraConfig
from megatron_patch.llama.model_config import LlamaConfig
from megatron_patch.model.linear import ColumnLinear, RowLinear
from megatron_patch.model.lora import GATE_UP, LoraColumnLinear, LoraRowLinear, over


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
    head, ffn, hidden = model.kv_channels, model.ffn_hidden_size // tp, model.hidden_size
    queries = model.num_attention_heads // model.num_query_groups * head
    return LinearLayers(
        qkv=over(LoraColumnLinear, lora, ATTENTION_TARGETS[:3], (queries, head, head)),
        projection=over(LoraRowLinear, lora, ATTENTION_TARGETS[3:], (hidden,)),
        gate_up=over(LoraColumnLinear, lora, GATE_UP, (ffn, ffn)),
        down=over(LoraRowLinear, lora, ("down_proj",), (hidden,)),
    )
