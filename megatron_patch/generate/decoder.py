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
from megatron_patch.generate.layer_products import DOWN, GATE_UP, OUTPUT, PROJECTION, QKV, Activations, LayerProducts
from megatron_patch.generate.logprobs import Wanted, score
from megatron_patch.generate.ranks import Ranks
from megatron_patch.kernels.attention import attention
from megatron_patch.kernels.cross_entropy import vocab_parallel_cross_entropy
from megatron_patch.kernels.decode_attention import READING, Reading, decode_attention
from megatron_patch.kernels.rope import rope_qkv, rope_tables
from megatron_patch.llama.model_config import LlamaConfig
from megatron_patch.llama.rope_scaling import DYNAMIC
from megatron_patch.llama.vocabulary import rows_of_rank

# Rows of logits that are in memory at once, while losses are computed.
_LOGIT_ROWS = 8192
_SCORED_ROWS = 1024  # the same, where they are gathered whole in fp32

# Passes over as many tokens, after which finding the library's fastest algorithms for them costs less than it saves.
WORTH_MEASURING = 24

# Tokens of a pass, from which on a GPU gets no faster by more.
_BUSY = 16384

# (layer, what its first product made [T, (N + 2·G)·D]) → [T, N·D]
Attend = Callable[[int, torch.Tensor], torch.Tensor]


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
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        places: torch.Tensor,
        lengths: torch.Tensor,
        ends: Sequence[int],
        *,
        last: torch.Tensor | None = None,
        wanted: Wanted | None = None,
        vocabulary: int | None = None,
        measured: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Whole sequences into the cache, the logits behind the last token of each, and how probable tokens were.

        Args:
            tokens, positions, places: int64 [T]: token ids of the sequences one after the other, each one's place in
                its sequence, and where the cache keeps it.
            lengths: int64 [T]: how long the sequence was when the token came: a prompt's for its tokens, one more with
                each token of an answer. Dynamic scaling of positions asks for it.
            ends: for each sequence, the index in T behind its last token.
            last: int64 [B], the tokens behind which logits are wanted; None: each sequence's last.
            wanted: R tokens that are scored.
            vocabulary: as `score` takes it.
            measured: as of LayerProducts.

        Returns:
            (fp32 [B, V] on the last stage, [B, 0] elsewhere; fp64 [R, 1 + 2 · count] as `score` gives it, zeros
            elsewhere).
        """

        cos, sin = self._rotation(positions, lengths)

        def attend(layer: int, packed: torch.Tensor) -> torch.Tensor:
            q, k, v = self._rotated(packed, cos, sin)
            self.cache.write(layer, places, k, v)
            return self._within(q, k, v, ends, again=last is not None)

        products = self.library_products(measured=measured)
        found = self._run(tokens, attend, products)
        if last is None:
            last = on_device(torch.tensor(ends), self.ranks.device) - 1
        scores = self._scores(found, wanted, vocabulary, products) if wanted is not None and wanted.rows else None
        return self._logits(_rows(found, last), products), scores

    def _scores(self, x: Activations, wanted: Wanted, vocabulary: int | None, products: LayerProducts) -> torch.Tensor:
        device = self.ranks.device
        found = torch.zeros(wanted.shape, dtype=torch.float64, device=device)
        rows, labels = (on_device(torch.tensor(one, dtype=torch.int64), device) for one in (wanted.rows, wanted.labels))
        for a in range(0, len(rows) if self.ranks.is_last_stage else 0, _SCORED_ROWS):
            part = slice(a, a + _SCORED_ROWS)
            found[part] = score(self._logits(_rows(x, rows[part]), products), labels[part], wanted.count, vocabulary)
        return found

    @torch.no_grad()
    def decode(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        table: torch.Tensor,
        rotation: tuple[torch.Tensor, torch.Tensor],
        products: LayerProducts,
        reading: Reading = READING,
    ) -> torch.Tensor:
        """Logits as `prefill` has them, behind one new token of each sequence, whose key and value join the cache.

        Args:
            tokens: int64 [B].
            positions: int32 [B], each one's place in its sequence.
            table: int32 [B, M], the blocks of each sequence.
            rotation: `rotation_rows`, of the longest sequence.
        """

        def attend(layer: int, packed: torch.Tensor) -> torch.Tensor:
            keys, values = self.cache.keys[layer], self.cache.values[layer]
            return decode_attention(packed, keys, values, table, positions, *rotation, scale=self.scale, reading=reading)

        return self._logits(self._run(tokens, attend, products), products)

    @torch.no_grad()
    def losses(
        self, tokens: torch.Tensor, positions: torch.Tensor, labels: torch.Tensor, ends: Sequence[int], *, measured: bool = False
    ) -> torch.Tensor:
        """How improbable the model finds `labels`, each behind the tokens before it; the cache is not used.

        Args:
            tokens, positions: int64 [T], as `prefill` takes them.
            labels: int64 [T], on the CPU; none is asked for where it is below 0.
            measured: as of LayerProducts.

        Returns:
            fp32 [W], −ln of the probability of each of the W labels; zeros on every stage but the last.
        """
        device = self.ranks.device
        cos, sin = self._rotation(positions, _lengths(ends, device))
        products = self.library_products(measured=measured)
        found = self._run(tokens, lambda _, packed: self._within(*self._rotated(packed, cos, sin), ends, again=True), products)
        wanted = (labels >= 0).nonzero().flatten()
        output, normed = self.weights.output, found.normed
        if output is None or normed is None:
            return torch.zeros(len(wanted), device=device)
        first, valid = rows_of_rank(self.rows, self.ranks.tensor_size, self.ranks.tensor)
        labels, wanted = (on_device(part, device) for part in (labels[wanted], wanted))
        parts = []
        for a in range(0, len(wanted), _LOGIT_ROWS):
            logits = F.linear(normed[wanted[a : a + _LOGIT_ROWS]], output)
            chosen = labels[a : a + _LOGIT_ROWS]
            parts.append(
                vocab_parallel_cross_entropy(logits, chosen, group=self.ranks.tensor_group, vocab_start=first, valid=valid)
            )
        return torch.cat(parts) if parts else torch.zeros(0, device=device)

    def tokens_of_pass(self) -> int:
        """Tokens of a pass of `losses` that keep the GPU busy and fit into half of its free memory; 0 on a CPU."""
        if self.ranks.device.type != "cuda":
            return 0
        config, free = self.config, torch.cuda.mem_get_info(self.ranks.device)[0]
        # What a layer holds at once: some [T, H], queries, keys, values, gate and up and their product.
        heads = (self.heads + 2 * self.groups) * config.kv_channels
        numbers = 8 * config.hidden_size + 2 * heads + 4 * config.ffn_hidden_size // self.ranks.tensor_size
        return min(_BUSY, free // 2 // (numbers * self.dtype.itemsize))

    def library_products(self, *, measured: bool = False) -> LayerProducts:
        """Those for any number of rows."""
        return LayerProducts(self.ranks, self.config.norm_epsilon, measured=measured)

    def rotation_rows(self, longest: int) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin [longest, D/2] of the new token at each place, whose sequence is one longer than that."""
        places = torch.arange(longest, device=self.ranks.device)
        cos, sin = self._rotation(places, places + 1)
        return cos.contiguous(), sin.contiguous()

    def _rotated(
        self, packed: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """q [T, N, D], k and v [T, G, D] of [T, (N + 2·G)·D]."""
        q, k, v = rope_qkv(packed.unsqueeze(1), cos, sin, self.heads, self.groups)
        return q[:, 0], k[:, 0], v[:, 0]

    def _within(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, ends: Sequence[int], *, again: bool) -> torch.Tensor:
        """Causal attention inside each sequence: q [T, N, D], k and v [T, G, D] → [T, N·D].

        Sequences of equal length share one launch.

        Args:
            again: whether a length that all have will come again. For each new one cuDNN makes a plan, for which all
                others wait, and keeps it for ever; so PyTorch's flash kernel, which needs none, takes other lengths.
        """
        starts = [0, *ends[:-1]]
        lengths = {b - a for a, b in zip(starts, ends)}
        bounds = [(0, len(q))] if len(lengths) == 1 else list(zip(starts, ends))
        rows = lengths.pop() if len(lengths) == 1 else None
        backend = self.backend if self.backend != "cudnn" or (again and rows) else "flash"
        parts = []
        for a, b in bounds:
            # [S, B, heads, D], B sequences of length S
            q1, k1, v1 = (x[a:b].unflatten(0, (-1, rows or b - a)).transpose(0, 1) for x in (q, k, v))
            found = attention(q1, k1, v1, scale=self.scale, causal=True, backend=backend)
            parts.append(found.transpose(0, 1).reshape(b - a, -1))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _run(self, tokens: torch.Tensor, attend: Attend, products: LayerProducts) -> Activations:
        """[T] through this stage's layers, from the stage before and to the next: [T, H]."""
        if self.weights.embedding is not None:
            hidden = F.embedding(tokens, self.weights.embedding)
        else:
            hidden = torch.empty(len(tokens), self.config.hidden_size, dtype=self.dtype, device=self.ranks.device)
            torch.distributed.recv(hidden, self.ranks.previous)
        found = self._layers(hidden, attend, products)
        if not self.ranks.is_last_stage:
            torch.distributed.send(found.hidden.contiguous(), self.ranks.following)
        return found

    def _layers(self, hidden: torch.Tensor, attend: Attend, products: LayerProducts) -> Activations:
        """[T, H] → [T, H], with the norm behind the last layer where the output layer follows."""
        layers = self.weights.layers
        norms = [layer.input_norm for layer in layers[1:]] + [self.weights.final_norm]
        x = products.begin(hidden, layers[0].input_norm)
        for number, (layer, next_norm) in enumerate(zip(layers, norms)):
            mixed = attend(number, products.apply(QKV, x, layer.qkv))
            x = products.add(PROJECTION, mixed, layer.projection, x.hidden, layer.mlp_norm)
            gated = products.apply(GATE_UP, x, layer.gate_up, gated=True)
            x = products.add(DOWN, gated, layer.down, x.hidden, next_norm)
        return x

    def _logits(self, x: Activations, products: LayerProducts) -> torch.Tensor:
        if self.weights.output is None:
            return x.hidden.new_empty(len(x.hidden), 0, dtype=torch.float32)
        found = products.apply(OUTPUT, x, self.weights.output, out_dtype=torch.float32)
        return self.ranks.gather_columns(found)[:, : self.rows]

    def _rotation(self, positions: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin, fp32 [T, D/2]. Under dynamic scaling a token's sequence length so far decides its base.

        A key stays in the cache as it was rotated, also when the sequence grows longer: as in transformers.
        """
        config = self.config
        base: float | torch.Tensor = config.rotary_base
        if config.rope_type == DYNAMIC:  # the host reads the lengths
            bases = [config.rotary_base_of(length) for length in lengths.tolist()]
            base = torch.tensor(bases, dtype=torch.float32, device=lengths.device)[:, None]
        factor = config.interpolation_factor
        return rope_tables(positions, config.kv_channels, base, positions.device, interpolation_factor=factor)


def _rows(x: Activations, rows: torch.Tensor) -> Activations:
    """Those of [T, H] that int64 [R] names."""
    return Activations(x.hidden[rows], x.norm, None if x.normed is None else x.normed[rows])


def _lengths(ends: Sequence[int], device: torch.device) -> torch.Tensor:
    """For each token the length of its sequence, int64 [T]."""
    sizes = torch.tensor(ends).diff(prepend=torch.zeros(1, dtype=torch.int64))
    return on_device(sizes.repeat_interleave(sizes), device)


def on_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A copy of a CPU's tensor, in turn with the device's other work: the host does not wait."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
