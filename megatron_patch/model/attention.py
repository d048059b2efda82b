"""Self-attention of LLaMA: packed QKV, rotary positions, and a core attention that is chosen by name.

Two of core's slots carry something else than their names say. `LlamaModel.forward` fills both. `rotary_pos_emb` is the
rotary table, fp32 [S, D] or [S, B, D]: cosines in the first half of D, sines in the second. `attention_mask` holds the
segment numbers of packed samples, [B, S]; None means plain causal attention.
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
    """What stands in core's slot `core_attention`: query [S, B, N, D], key and value [S, B, G, D] → [S, B, N·D]."""

    backend = "unfused"  # `with_backend` makes a subclass with another one

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
        """query [S, B, N, D], key and value [S, B, G, D] → [S, B, N·D]. The result is causal.

        Args:
            attention_mask: not a mask but segment numbers, [B, S], or None.
            recompute: see `kernels.attention.attention`.
        """
        assert attention_bias is None and packed_seq_params is None, "LLaMA has neither"
        return attention(
            query,
            key,
            value,
            scale=self.scale,
            backend=self.backend,
            causal=True,
            segment_ids=attention_mask,  # core's slot for a mask holds segment numbers here
            recompute=recompute,
        )


def with_backend(backend: str) -> type[CoreAttention]:
    """A subclass of `CoreAttention` that computes with `backend`, one of `kernels.attention.BACKENDS`.

    core makes the module from a class, without arguments of ours, so the choice must be in the class.
    """
    return type("CoreAttention", (CoreAttention,), {"backend": backend})


class LlamaSelfAttention(SelfAttention):
    """core's self-attention: its weights and its way to save them, with a shorter forward pass.

    core's own forward pass also serves inference, cross-attention and Transformer Engine. Here are the three steps that
    training needs: one product and rotation, attention, one product.
    """

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None,
        *,
        rotary_pos_emb: torch.Tensor,
        **_: Any,
    ) -> tuple[torch.Tensor, None]:
        """hidden_states [S, B, H] → ([S, B, H], None, since there is no bias).

        Args:
            attention_mask: not a mask but segment numbers, [B, S], or None.
            rotary_pos_emb: cosines and then sines, fp32 [S, D] or [S, B, D].
        """
        qkv, _ = self.linear_qkv(hidden_states)
        cos, sin = rotary_pos_emb.chunk(2, dim=-1)  # `LlamaModel.rotary_table` joined them for core's one slot
        query, key, value = rope_qkv(qkv, cos, sin, self.num_attention_heads_per_partition, self.num_query_groups_per_partition)
        context = self._attend(query, key, value, attention_mask)
        return self.linear_proj(context)

    def _attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, segments: torch.Tensor | None) -> torch.Tensor:
        """Attention, recomputed where AC sel says so: query [S, B, N, D], key and value [S, B, G, D] → [S, B, N·D].

        core sets `checkpoint_core_attention` for AC sel with unfused attention. Its probabilities [B·N, S, S] are then
        computed again in the backward pass instead of kept.
        """
        if self.checkpoint_core_attention and self.training:
            if recomputes_itself(self.core_attention.backend, segments):
                return self.core_attention(query, key, value, segments, recompute=True)
            return recomputed(lambda q, k, v: self.core_attention(q, k, v, segments), query, key, value)
        return self.core_attention(query, key, value, segments)
