"""LLaMA's forward pass for generation: whole prompts, or one token a sequence, over the cache of keys and values.

It is not the model of training. Nothing here has a gradient, tokens of different sequences lie beside each other
without padding ([T, H]), and the layers of all requests share their launches. The kernels are those of training, and
decoding's own attention. T tokens, B sequences; N, G: this rank's heads and KV groups.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from megatron_patch.generate.cache import BlockCache
from megatron_patch.generate.logprobs import Wanted, score
from megatron_patch.generate.ranks import Ranks
from megatron_patch.kernels.attention import attention
from megatron_patch.kernels.cross_entropy import vocab_parallel_cross_entropy
from megatron_patch.kernels.decode_attention import decode_attention
from megatron_patch.kernels.rms_norm import add_rms_norm, rms_norm
from megatron_patch.kernels.rope import rope_qkv, rope_tables
from megatron_patch.kernels.swiglu import swiglu
from megatron_patch.llama.model_config import LlamaConfig
from megatron_patch.llama.rope_scaling import DYNAMIC
from megatron_patch.llama.vocabulary import rows_of_rank

# Rows of logits that are in memory at once, while losses are computed.
_LOGIT_ROWS = 8192
_SCORED_ROWS = 1024  # the same, where they are gathered whole in fp32

Attend = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class LayerWeights:
    """One layer's share of this rank."""

    input_norm: torch.Tensor  # [H]
    qkv: torch.Tensor  # [G·(N/G + 2)·D, H], for each group its queries, key, value
    projection: torch.Tensor  # [H, N·D]
    mlp_norm: torch.Tensor  # [H]
    gate_up: torch.Tensor  # [2·F, H], gate first
    down: torch.Tensor  # [H, F]


@dataclass(frozen=True)
class DecoderWeights:
    """This rank's share of the stage's weights; what another stage has is None."""

    layers: tuple[LayerWeights, ...]
    embedding: torch.Tensor | None  # [V, H], whole on every rank of the first stage
    final_norm: torch.Tensor | None  # [H]
    output: torch.Tensor | None  # [rows of this rank, H], zero behind the vocabulary's last row


class Decoder:
    """A stage of the model with its cache.

    Args:
        rows: of the vocabulary, extra rows included.
        backend: of `kernels.attention`, for prompts.
    """

    def __init__(
        self, config: LlamaConfig, weights: DecoderWeights, cache: BlockCache, ranks: Ranks, rows: int, backend: str
    ) -> None:
        self.config, self.weights, self.cache, self.ranks, self.rows, self.backend = config, weights, cache, ranks, rows, backend
        self.heads = config.num_attention_heads // ranks.tensor_size
        self.groups = config.num_query_groups // ranks.tensor_size
        self.scale = config.kv_channels**-0.5
        self.dtype = weights.layers[0].qkv.dtype

    @torch.no_grad()
    def prefill(
        self, tokens: torch.Tensor, positions: torch.Tensor, places: torch.Tensor, lengths: torch.Tensor, ends: Sequence[int],
        wanted: Wanted | None = None, vocabulary: int | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
        """Whole sequences into the cache, the logits behind the last token of each, and how probable tokens were.

        Args:
            tokens, positions, places: int64 [T]: token ids of the sequences one after the other, each one's place in
                its sequence, and where the cache keeps it.
            lengths: int64 [T]: how long the sequence was when the token came: a prompt's for its tokens, one more with
                each token of an answer. Dynamic scaling of positions asks for it.
            ends: for each sequence, the index in T behind its last token.
            wanted: R tokens that are scored.
            vocabulary: as `score` takes it.

        Returns:
            (fp32 [B, V] on the last stage, [B, 0] elsewhere; fp64 [R, 1 + 2 · count] as `score` gives it, zeros
            elsewhere).
        """

        def attend(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            self.cache.write(layer, places, k, v)
            return self._within(q, k, v, ends)

        hidden = self._run(tokens, positions, lengths, attend)
        last = torch.tensor(ends, device=hidden.device) - 1
        return self._logits(hidden[last]), self._scores(hidden, wanted or Wanted((), (), 0), vocabulary)

    def _scores(self, hidden: torch.Tensor, wanted: Wanted, vocabulary: int | None) -> torch.Tensor:
        found = torch.zeros(wanted.shape, dtype=torch.float64, device=hidden.device)
        rows, labels = (torch.tensor(one, dtype=torch.int64, device=hidden.device) for one in (wanted.rows, wanted.labels))
        for a in range(0, len(rows) if self.ranks.is_last_stage else 0, _SCORED_ROWS):
            part = slice(a, a + _SCORED_ROWS)
            found[part] = score(self._logits(hidden[rows[part]]), labels[part], wanted.count, vocabulary)
        return found

    @torch.no_grad()
    def decode(self, tokens: torch.Tensor, positions: torch.Tensor, places: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        """Logits as `prefill` has them, behind one new token of each sequence.

        Args:
            tokens, positions, places: int64 [B], as `prefill` takes them.
            table: int32 [B, M], the blocks of each sequence.
        """
        lengths = (positions + 1).to(torch.int32)

        def attend(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            self.cache.write(layer, places, k, v)
            return decode_attention(q, self.cache.keys[layer], self.cache.values[layer], table, lengths, scale=self.scale)

        return self._logits(self._run(tokens, positions, positions + 1, attend))

    @torch.no_grad()
    def losses(self, tokens: torch.Tensor, positions: torch.Tensor, labels: torch.Tensor, ends: Sequence[int]) -> torch.Tensor:
        """How improbable the model finds `labels`, each behind the tokens before it; the cache is not used.

        Args:
            tokens, positions, labels: int64 [T], as `prefill` takes the first two; a label below 0 has the loss 0.

        Returns:
            fp32 [T], −ln of the probability; zeros on every stage but the last.
        """
        hidden = self._run(tokens, positions, _lengths(ends, tokens.device), lambda _, q, k, v: self._within(q, k, v, ends))
        output, norm = self.weights.output, self.weights.final_norm
        if output is None or norm is None:
            return torch.zeros(len(tokens), device=tokens.device)
        first, valid = rows_of_rank(self.rows, self.ranks.tensor_size, self.ranks.tensor)
        parts = []
        for a in range(0, len(tokens), _LOGIT_ROWS):
            logits = F.linear(rms_norm(hidden[a : a + _LOGIT_ROWS], norm, self.config.norm_epsilon), output)
            found = vocab_parallel_cross_entropy(
                logits, labels[a : a + _LOGIT_ROWS], group=self.ranks.tensor_group, vocab_start=first, valid=valid
            )
            parts.append(found)
        return torch.cat(parts)

    def _within(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, ends: Sequence[int]) -> torch.Tensor:
        """Causal attention inside each sequence: q [T, N, D], k and v [T, G, D] → [T, N·D].

        Sequences of equal length share one launch.
        """
        starts = [0, *ends[:-1]]
        lengths = {b - a for a, b in zip(starts, ends)}
        bounds = [(0, len(q))] if len(lengths) == 1 else list(zip(starts, ends))
        rows = lengths.pop() if len(lengths) == 1 else None
        parts = []
        for a, b in bounds:
            # [S, B, heads, D], B sequences of length S
            q1, k1, v1 = (x[a:b].unflatten(0, (-1, rows or b - a)).transpose(0, 1) for x in (q, k, v))
            found = attention(q1, k1, v1, scale=self.scale, causal=True, backend=self.backend)
            parts.append(found.transpose(0, 1).reshape(b - a, -1))
        return torch.cat(parts)

    def _run(self, tokens: torch.Tensor, positions: torch.Tensor, lengths: torch.Tensor, attend: Attend) -> torch.Tensor:
        """[T] through this stage's layers, from the stage before and to the next: [T, H]."""
        if self.weights.embedding is not None:
            hidden = F.embedding(tokens, self.weights.embedding)
        else:
            hidden = torch.empty(len(tokens), self.config.hidden_size, dtype=self.dtype, device=self.ranks.device)
            torch.distributed.recv(hidden, self.ranks.previous)
        hidden = self._layers(hidden, *self._rotation(positions, lengths), attend)
        if not self.ranks.is_last_stage:
            torch.distributed.send(hidden.contiguous(), self.ranks.following)
        return hidden

    def _layers(self, hidden: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, attend: Attend) -> torch.Tensor:
        """[T, H] → [T, H]. The sum before each norm is computed in the norm's kernel, so it travels as two terms."""
        epsilon, term = self.config.norm_epsilon, None
        for number, layer in enumerate(self.weights.layers):
            if term is None:
                normed = rms_norm(hidden, layer.input_norm, epsilon)
            else:
                normed, hidden = add_rms_norm(term, hidden, layer.input_norm, epsilon)
            packed = F.linear(normed, layer.qkv).unsqueeze(1)
            q, k, v = (part[:, 0] for part in rope_qkv(packed, cos, sin, self.heads, self.groups))
            term = self.ranks.reduce(F.linear(attend(number, q, k, v), layer.projection))
            normed, hidden = add_rms_norm(term, hidden, layer.mlp_norm, epsilon)
            term = self.ranks.reduce(F.linear(swiglu(F.linear(normed, layer.gate_up)), layer.down))
        return hidden if term is None else hidden + term

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        if self.weights.output is None or self.weights.final_norm is None:
            return hidden.new_empty(len(hidden), 0, dtype=torch.float32)
        normed = rms_norm(hidden, self.weights.final_norm, self.config.norm_epsilon)
        return self.ranks.gather_columns(F.linear(normed, self.weights.output))[:, : self.rows].float()

    def _rotation(self, positions: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin, fp32 [T, D/2]. Under dynamic scaling a token's sequence length so far decides its base.

        A key stays in the cache as it was rotated, also when the sequence grows longer: as in transformers.
        """
        config = self.config
        base: float | torch.Tensor = config.rotary_base
        if config.rope_type == DYNAMIC:  # which no CUDA graph can hold: the host reads the lengths
            bases = [config.rotary_base_of(length) for length in lengths.tolist()]
            base = torch.tensor(bases, dtype=torch.float32, device=lengths.device)[:, None]
        factor = config.interpolation_factor
        return rope_tables(positions, config.kv_channels, base, positions.device, interpolation_factor=factor)


def _lengths(ends: Sequence[int], device: torch.device) -> torch.Tensor:
    """For each token the length of its sequence, int64 [T]."""
    sizes = torch.tensor(ends, device=device).diff(prepend=torch.zeros(1, dtype=torch.int64, device=device))
    return sizes.repeat_interleave(sizes)
