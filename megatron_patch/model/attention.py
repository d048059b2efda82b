"""Self-attention of LLaMA: packed QKV, rotary positions, a core attention chosen by name.

Two of core's slots carry other things than their names say; `LlamaModel.forward` fills them. `rotary_pos_emb` is the rotary
table, fp32 [S, D] or [S, B, D]: cosines in the first half, sines in the second. `attention_mask` holds the segment numbers of
packed samples, [B, S]; None means plain causal attention.
"""

from __future__ import annotations

import megatron_patch.core.device  # noqa: F401  prepares megatron-core for this machine

from typing import Any

import torch
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.attention import SelfAttention
from megatron.core.transformer.enums import AttnMaskType

from megatron_patch.core.recomputation import recomputed
from megatron_patch.kernels.attention import attention, recomputes_itself
from megatron_patch.kernels.rope import rope_qkv


class CoreAttention(torch.nn.Module):
    """core's `core_attention` slot: scaled dot product attention over [S, B, N, D], [S, B, G, D] twice → [S, B, N·D]."""

    backend = "unfused"  # `with_backend` makes the class whose implementation the configuration chose

    def __init__(self, config: TransformerConfig, *, softmax_scale: float | None = None, **_: Any) -> None:
        super().__init__()
        self.scale = softmax_scale if softmax_scale is not None else config.kv_channels**-0.5

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        attn_mask_type: AttnMaskType | None = None,
        attention_bias: None = None,
        packed_seq_params: None = None,
        recompute: bool = False,
    ) -> torch.Tensor:
        """query [S, B, N, D], key and value [S, B, G, D], attention_mask: segment numbers [B, S] or None → [S, B, N·D]."""
        assert attention_bias is None and packed_seq_params is None, "LLaMA has neither"
        # core's `attention_mask` holds segment numbers here.
        return attention(
            query,
            key,
            value,
            scale=self.scale,
            backend=self.backend,
            causal=True,
            segment_ids=attention_mask,
            recompute=recompute,
        )


def with_backend(backend: str) -> type[CoreAttention]:
    """The `CoreAttention` that computes with `backend`, a name that `kernels.attention` knows."""
    return type("CoreAttention", (CoreAttention,), {"backend": backend})


class LlamaSelfAttention(SelfAttention):
    """core's self-attention with its weights and its checkpoints, and a forward pass of three steps."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None,
        *,
        rotary_pos_emb: torch.Tensor,
        **_: Any,
    ) -> tuple[torch.Tensor, None]:
        """hidden_states [S, B, H] → ([S, B, H], None: there is no bias). attention_mask: segment numbers [B, S] or None."""
        qkv, _ = self.linear_qkv(hidden_states)
        cos, sin = rotary_pos_emb.chunk(2, dim=-1)  # `LlamaModel.rotary_table` joined them for core's one slot
        query, key, value = rope_qkv(qkv, cos, sin, self.num_attention_heads_per_partition, self.num_query_groups_per_partition)
        context = self._attend(query, key, value, attention_mask)
        return self.linear_proj(context)

    def _attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, segments: torch.Tensor | None) -> torch.Tensor:
        # AC sel with unfused attention: its [B·N, S, S] probabilities are computed again in the backward pass, not kept.
        if self.checkpoint_core_attention and self.training:
            if recomputes_itself(self.core_attention.backend, segments):
                return self.core_attention(query, key, value, segments, recompute=True)
            return recomputed(lambda q, k, v: self.core_attention(q, k, v, segments), query, key, value)
        return self.core_attention(query, key, value, segments)
