"""Which linear layers of Hugging Face are one layer in megatron-core, and in which order their outputs lie there.

Imports no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from megatron_patch.formats.peft_adapter import ATTENTION_TARGETS, MLP_TARGETS
from megatron_patch.llama.model_config import LlamaConfig

QKV, PROJECTION, GATE_UP, DOWN = ("self_attention.linear_qkv", "self_attention.linear_proj", "mlp.linear_fc1", "mlp.linear_fc2")


@dataclass(frozen=True)
class FusedLayer:
    """One of core's layers.

    Attributes:
        name: of its module in a layer of the model.
        parts: the Hugging Face layers in it.
        heights: of each, its columns in a period of the output. Each KV head is a period of q, k and v.
        periods: how many there are.
    """

    name: str
    parts: tuple[str, ...]
    heights: tuple[int, ...]
    periods: int

    def numbers(self, targets: Sequence[str]) -> tuple[int | None, ...]:
        """Of each part its number among those of `targets`; None for one that is not."""
        order = [part for part in self.parts if part in targets]
        return tuple(order.index(part) if part in order else None for part in self.parts)


def fused_layers(model: LlamaConfig, tp: int = 1) -> tuple[FusedLayer, ...]:
    """Those of one layer of the model, as one of `tp` ranks has them; layers split by their input have all outputs."""
    head, queries = model.kv_channels, model.num_attention_heads // model.num_query_groups * model.kv_channels
    ffn, hidden = model.ffn_hidden_size // tp, (model.hidden_size,)
    return (
        FusedLayer(QKV, ATTENTION_TARGETS[:3], (queries, head, head), model.num_query_groups // tp),
        FusedLayer(PROJECTION, ATTENTION_TARGETS[3:], hidden, 1),
        FusedLayer(GATE_UP, MLP_TARGETS[:2], (ffn, ffn), 1),
        FusedLayer(DOWN, MLP_TARGETS[2:], hidden, 1),
    )
