"""Prompts through the model: one prompt as a CUDA graph, where the host would be slower than the GPU.

Graphs are of few lengths. A prompt is filled up to the next one with tokens that nothing sees: attention is causal, and
what they would cache goes into the block that is nobody's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from megatron_patch.generate.cache import BLOCK, SCRATCH
from megatron_patch.generate.decoder import WORTH_MEASURING, Decoder, on_device
from megatron_patch.generate.logprobs import Wanted
from megatron_patch.generate.recording import recorded
from megatron_patch.llama.rope_scaling import DYNAMIC

_LONGEST = 2048  # from here on a pass takes a GPU longer than the host
_LAST = 4  # the row of a graph's numbers that begins with the place of the prompt's last token


@dataclass(frozen=True)
class _Recorded:
    graph: torch.cuda.CUDAGraph
    numbers: torch.Tensor  # int64 [5, T]: what `Decoder.prefill` takes, and _LAST
    logits: torch.Tensor
    measured: bool  # whether its products' algorithms were


class Prompts:
    """All prompts of an engine."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self._recorded: dict[int, _Recorded] = {}
        self._passes: Counter[int] = Counter()
        ranks, scaling = decoder.ranks, decoder.config.rope_type
        # Dynamic scaling reads lengths on the host, and collectives of several processes are launched one by one.
        self._uses_graphs = ranks.device.type == "cuda" and ranks.replica_group is None and scaling != DYNAMIC
        self._pool = torch.cuda.graph_pool_handle() if self._uses_graphs else None

    def logits(
        self, numbers: torch.Tensor, ends: Sequence[int], wanted: Wanted | None = None, vocabulary: int | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Sequences into the cache, the logits behind each and the scores of tokens, as `Decoder.prefill` returns them.

        Args:
            numbers: int64 [4, T] on the CPU: tokens, positions, places and lengths as `prefill` takes them.
            ends, wanted, vocabulary: as it takes them.
        """
        tokens, scored = numbers.shape[1], wanted is not None and len(wanted.rows) > 0
        if len(ends) > 1 or tokens > _LONGEST or scored or not self._uses_graphs:
            given, positions, places, lengths = on_device(numbers, self._decoder.ranks.device)
            return self._decoder.prefill(given, positions, places, lengths, ends, wanted=wanted, vocabulary=vocabulary)
        size = size_of_graph(tokens)
        self._passes[size] += 1
        made = self._recorded.get(size)
        measured = self._passes[size] > WORTH_MEASURING
        if made is None or measured > made.measured:
            self._recorded[size] = made = self._record(size, measured)
        made.numbers.copy_(filled_up(numbers, size).pin_memory(), non_blocking=True)
        made.graph.replay()
        return made.logits, None

    def _record(self, size: int, measured: bool) -> _Recorded:
        """A graph of `size` tokens."""
        device = self._decoder.ranks.device
        numbers = on_device(filled_up(torch.zeros(4, 0, dtype=torch.int64), size), device).clone()
        graph, logits = recorded(lambda: self._pass(numbers, measured), device, self._pool)
        return _Recorded(graph, numbers, logits, measured)

    def _pass(self, numbers: torch.Tensor, measured: bool) -> torch.Tensor:
        tokens, positions, places, lengths, last = numbers
        ends = [numbers.shape[1]]
        logits, _ = self._decoder.prefill(tokens, positions, places, lengths, ends, last=last[:1], measured=measured)
        return logits


def size_of_graph(tokens: int) -> int:
    """The length of the graph that takes `tokens`: few lengths, of which none is much too long."""
    step = 32 if tokens <= 128 else 128 if tokens <= 1024 else 256
    return -(-tokens // step) * step


def filled_up(numbers: torch.Tensor, size: int) -> torch.Tensor:
    """int64 [4, T] → [5, size], whose row _LAST begins with T − 1, or 0 of no tokens."""
    tokens = numbers.shape[1]
    whole = torch.zeros(_LAST + 1, size, dtype=torch.int64)
    whole[1] = torch.arange(size)
    whole[2] = SCRATCH * BLOCK + torch.arange(size) % BLOCK
    whole[3] = size
    whole[:_LAST, :tokens] = numbers
    whole[_LAST, 0] = max(0, tokens - 1)
    return whole
