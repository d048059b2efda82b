"""LLaMA-2 as a megatron-core model: a layer, its spec, and the GPTModel around it."""

from __future__ import annotations

import megatron_patch.core.device  # noqa: F401  prepares megatron-core for this machine

from collections.abc import Iterator
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from megatron.core.tensor_parallel.mappings import (
    reduce_from_tensor_model_parallel_region,
    reduce_scatter_to_sequence_parallel_region,
)
from megatron.core.transformer import ModuleSpec, TransformerConfig
from megatron.core.transformer.attention import SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules

from megatron_patch.core.recomputation import recomputed
from megatron_patch.core.weight_gradients import direct_main_grad
from megatron_patch.formats.peft_adapter import LoraConfig
from megatron_patch.kernels.cross_entropy import vocab_parallel_cross_entropy
from megatron_patch.kernels.embedding import embedding
from megatron_patch.kernels.rope import rope_tables
from megatron_patch.llama.model_config import LlamaConfig
from megatron_patch.llama.vocabulary import padded_rows, rows_of_rank
from megatron_patch.model.attention import LlamaSelfAttention, with_backend
from megatron_patch.model.linear_layers import LinearLayers, linear_layers
from megatron_patch.model.lora import freeze_the_rest
from megatron_patch.model.mlp import LlamaMLP
from megatron_patch.model.norm import RMSNorm
from megatron_patch.model.padding import without_padding, zero_padding

# In checkpoints the norms have the names that Transformer Engine's fused layers give them. So files can be exchanged
# with Megatron-LM.
_NORM_KEYS = {
    "input_layernorm.": "self_attention.linear_qkv.layer_norm_",
    "pre_mlp_layernorm.": "mlp.linear_fc1.layer_norm_",
}


class LlamaLayer(TransformerLayer):
    """norm, attention, norm, feed-forward. Each residual sum is fused with the norm that follows it.

    The kernel of the next layer's first norm also adds this layer's residual. So a layer returns its output and its
    residual separately, and the residual is passed in core's `context` argument.

    core's slots carry something else here than their names say:
        attention_mask: segment numbers of packed samples, [B, S]. `LlamaModel.forward` fills it, `CoreAttention` reads
            it.
        context: the previous layer's residual, [S, B, H]. The layer before fills it, this one reads it. core passes it
            from layer to layer because other models have cross-attention.
        rotary_pos_emb: cosines and sines beside each other, [S, D]. `LlamaModel.rotary_table` joins them,
            `LlamaSelfAttention.forward` splits them.

    Attributes, which `LlamaModel` sets:
        leaves_sum: whether the next layer adds this one's residual; if not, this layer adds it.
        is_recomputed: whether only the layer's input is kept for the backward pass (AC full).
        dropping: its linear layers whose adapters have dropout; `lora.number_dropout` sets it.
        samples: numbers in the run of the samples that come next, int64 [B], which they need; None elsewhere.
    """

    leaves_sum = False
    is_recomputed = False
    dropping: tuple[Any, ...] = ()
    samples: torch.Tensor | None = None

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        context: torch.Tensor | None = None,
        *,
        rotary_pos_emb: torch.Tensor,
        **_: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """One layer. With sequence parallelism S is this rank's share of the sequence.

        Args:
            hidden_states: [S, B, H], the previous layer's output, or the embeddings.
            attention_mask: not a mask but segment numbers, int [B, S]; None for plain causal attention.
            context: not a context but the previous layer's residual, [S, B, H], not yet added to `hidden_states`; None
                if there is none.
            rotary_pos_emb: fp32 [S, D] or [S, B, D], cosines and then sines of the whole sequence's positions.

        Returns:
            The output [S, B, H] and this layer's residual [S, B, H], not yet added; or their sum and None.
        """
        inputs = (hidden_states, attention_mask, context, rotary_pos_emb, self.samples)
        return recomputed(self._compute, *inputs) if self.is_recomputed and self.training else self._compute(*inputs)

    def _compute(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None,
        context: torch.Tensor | None,
        rotary_pos_emb: torch.Tensor,
        samples: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """`forward` without recomputation."""
        for linear in self.dropping:
            linear.samples = samples
        if context is None:
            normed, residual = self.input_layernorm.with_residual(hidden_states)
        else:
            normed, residual = self.input_layernorm.add(hidden_states, context)
        attended, _ = self.self_attention(normed, attention_mask, rotary_pos_emb=rotary_pos_emb)
        normed, residual = self.pre_mlp_layernorm.add(attended, residual)
        output, _ = self.mlp(normed)
        return (output, residual) if self.leaves_sum else (residual + output, None)


def llama_block_spec(config: TransformerConfig, attention_backend: str, linear: LinearLayers) -> TransformerBlockSubmodules:
    """core's description of this pipeline stage: its layers and the final norm."""
    layer = ModuleSpec(
        module=LlamaLayer,
        submodules=TransformerLayerSubmodules(
            input_layernorm=RMSNorm,
            self_attention=ModuleSpec(
                module=LlamaSelfAttention,
                params={"attn_mask_type": AttnMaskType.causal},
                submodules=SelfAttentionSubmodules(
                    linear_qkv=linear.qkv,
                    core_attention=with_backend(attention_backend),
                    linear_proj=linear.projection,
                ),
            ),
            pre_mlp_layernorm=RMSNorm,
            mlp=type("LlamaMLP", (LlamaMLP,), {"gate_up": linear.gate_up, "down": linear.down}),
            sharded_state_dict_keys_map=_NORM_KEYS,
        ),
    )
    from megatron.core.transformer.transformer_block import get_num_layers_to_build

    stage_layers = get_num_layers_to_build(config)
    return TransformerBlockSubmodules(layer_specs=[layer] * stage_layers, layer_norm=RMSNorm)


class LlamaModel(GPTModel):
    """One pipeline stage of LLaMA-2: RMSNorm, rotary positions, SwiGLU, grouped queries, untied embeddings, no biases.

    Attributes:
        vocab_rows: rows of the whole vocabulary, without padding.
        first_row: the token id of this tensor-parallel rank's first row.
        valid_rows: how many of this rank's rows are vocabulary; the others are padding.
    """

    def __init__(
        self,
        config: TransformerConfig,
        llama: LlamaConfig,
        vocab_size: int,
        attention_backend: str,
        recompute_layers: bool = False,
        lora: LoraConfig | None = None,
    ) -> None:
        tp, rank = parallel_state.get_tensor_model_parallel_world_size(), parallel_state.get_tensor_model_parallel_rank()
        padded = padded_rows(vocab_size, tp)
        super().__init__(
            config=config,
            transformer_layer_spec=llama_block_spec(config, attention_backend, linear_layers(llama, tp, lora)),
            vocab_size=padded,
            max_sequence_length=llama.max_position_embeddings,
            pre_process=parallel_state.is_pipeline_first_stage(),
            post_process=parallel_state.is_pipeline_last_stage(),
            parallel_output=True,
            share_embeddings_and_output_weights=False,
            position_embedding_type="none",  # rotary tables are made below
        )
        # Recomputation keeps each layer's inputs. Output and residual as separate tensors would be two to keep, so
        # layers that are recomputed add. The last layer adds in any case, because the final norm takes one tensor.
        for layer in self.decoder.layers:
            layer.is_recomputed = recompute_layers
            layer.leaves_sum = not recompute_layers and layer is not self.decoder.layers[-1]
        self.vocab_rows = vocab_size
        self.first_row, self.valid_rows = rows_of_rank(vocab_size, tp, rank)
        for _, weight in self._padded_weights():
            zero_padding(weight, self.valid_rows)
        # What is recomputed gets no gradient unless one of its inputs has one, and a frozen embedding gives none.
        self.embedding_needs_gradient = lora is not None and (recompute_layers or config.recompute_granularity is not None)
        if lora is not None:
            freeze_the_rest(self, lora)
        self.llama = llama
        self._rotary_table: torch.Tensor | None = None
        self._rotary_table_base = llama.rotary_base

    def _padded_weights(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """Name and weight of this stage's matrices over the vocabulary, if they have padding on any rank."""
        if padded_rows(self.vocab_rows, parallel_state.get_tensor_model_parallel_world_size()) == self.vocab_rows:
            return
        if self.pre_process:
            yield "embedding.word_embeddings.weight", self.embedding.word_embeddings.weight
        if self.post_process:
            yield "output_layer.weight", self.output_layer.weight

    def sharded_state_dict(self, prefix: str = "", sharded_offsets: tuple = (), metadata: dict | None = None) -> dict[str, Any]:
        """core's entries for a checkpoint. Those of the vocabulary have no padding, so that files load at any TP."""
        entries = super().sharded_state_dict(prefix, sharded_offsets, metadata)
        for name, _ in self._padded_weights():
            entries[prefix + name] = without_padding(entries[prefix + name], self.vocab_rows, self.first_row, self.valid_rows)
        return entries

    def rotary_table(self, length: int, position_ids: torch.Tensor | None, device: torch.device) -> torch.Tensor:
        """The rotary table of `length` positions: fp32 [S, D], or [S, B, D] with `position_ids` [B, S].

        Cosines and then sines are joined into one tensor, since core has one slot for both. `position_ids` are given
        where positions restart inside a row. Under dynamic scaling `length` decides the base, so all rows of a batch
        have the same. transformers differs in one thing: after a longer sequence it keeps that sequence's base until a
        sequence is shorter than the model's limit.

        The table is kept from call to call and grows with the longest sequence: it is the same for every micro-batch.
        """
        base = self.llama.rotary_base_of(length)
        if position_ids is not None:
            return self._tables(position_ids.t(), base, device)
        table = self._rotary_table
        if table is None or table.size(0) < length or base != self._rotary_table_base:
            table = self._tables(length, base, device)
            self._rotary_table, self._rotary_table_base = table, base
        return table[:length]

    def _tables(self, positions: int | torch.Tensor, base: float, device: torch.device) -> torch.Tensor:
        """The joined table for `positions`."""
        factor = self.llama.interpolation_factor
        tables = rope_tables(positions, self.config.kv_channels, base, device, interpolation_factor=factor)
        return torch.cat(tables, dim=-1)

    def forward(
        self,
        tokens: torch.Tensor,
        labels: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        segment_ids: torch.Tensor | None = None,
        samples: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Losses of this stage, its logits, or its activations for the next stage.

        Args:
            tokens: token ids, [B, S]. Stages behind the first use their shape alone.
            labels: the token that follows each, [B, S]. Without them the last stage returns logits.
            position_ids: [B, S], only where positions restart inside a row; otherwise they count from 0.
            segment_ids: [B, S], only for packed samples: a token sees only tokens of its own number.
            samples: int64 [B], only for dropout: the samples' numbers in the run.

        Returns:
            On the last stage fp32 losses [B, S], or logits [B, S, V / TP] with −inf in padding. On others the
            activations [S, B, H], or [S / TP, B, H] under sequence parallelism.
        """
        for layer in self.decoder.layers:
            layer.samples = samples
        hidden = self.embed(tokens) if self.pre_process else None
        if hidden is not None and self.embedding_needs_gradient and torch.is_grad_enabled():
            hidden.requires_grad_()
        hidden = self.decoder(
            hidden_states=hidden,
            attention_mask=segment_ids,  # core's slot for a mask; CoreAttention reads segment numbers from it
            rotary_pos_emb=self.rotary_table(tokens.size(1), position_ids, tokens.device),
        )
        if not self.post_process:
            return hidden
        logits, _ = self.output_layer(hidden)
        if labels is None:
            logits[..., self.valid_rows :] = -float("inf")  # padding is no token, so it must never be sampled
            return logits.transpose(0, 1)
        return self.losses(logits, labels)

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """tokens [B, S] → [S, B, H], or this rank's part [S / TP, B, H] under sequence parallelism.

        core's own makes [B, S, H] and transposes. Here the kernel writes the layers' order at once, and its backward
        pass adds to DDP's fp32 buffer. Each tensor-parallel rank has some rows of the weight and gives zeros for the
        others, so a sum over ranks completes it.
        """
        words = self.embedding.word_embeddings
        weight, start = words.weight, words.vocab_start_index
        rows = embedding(tokens.t(), weight, vocab_start=start, weight_grad=direct_main_grad(weight))
        if words.tp_group.size() == 1:
            return rows
        if words.reduce_scatter_embeddings:
            return reduce_scatter_to_sequence_parallel_region(rows, group=words.tp_group)
        return reduce_from_tensor_model_parallel_region(rows, group=words.tp_group)

    def losses(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Cross entropy of each token, in nats: logits [S, B, V / TP], labels [B, S] → fp32 [B, S].

        The backward pass writes the gradient over `logits`.
        """
        group = parallel_state.get_tensor_model_parallel_group()
        losses = vocab_parallel_cross_entropy(
            logits,
            labels.t().contiguous(),
            group=group if group.size() > 1 else None,
            vocab_start=self.first_row,
            valid=self.valid_rows,
        )
        return losses.t()
