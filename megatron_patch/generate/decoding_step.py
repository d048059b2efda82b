"""One more token for each running sequence, without the host: from the tokens that were chosen last to the next ones.

On a GPU the whole step is a CUDA graph, one for each size of batch: layers, logits, the choice of the next token. What
differs from step to step lies in tensors of fixed places: which slots run, how long their sequences are, their blocks.
Chosen tokens stay on the device, where the next step takes them, so the host may read them while that one runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
import torch

from megatron_patch.generate.cache import blocks_of
from megatron_patch.generate.decoder import Decoder, on_device
from megatron_patch.generate.logprobs import score
from megatron_patch.generate.recording import recorded
from megatron_patch.generate.sampling import Sampling, SamplingRows, choose, most_probable, sampling_rows
from megatron_patch.generate.tuning import StepChoice, choose_step
from megatron_patch.kernels._dispatch import next_power_of_two

NO_TOKEN = -1  # stands for a choice between numbers that are none, and for one that nobody asked for
_SLOT, _POSITION, _TABLE = 0, 1, 2  # columns of a step's numbers


@dataclass(frozen=True)
class _Kind:
    """What a graph is made for: rows of the batch, whether tokens are drawn, whether some are penalized, scores."""

    rows: int
    drawn: bool
    penalized: bool
    top: int | None  # how many of the most probable tokens are told beside each; None: nothing is scored


class _Found(NamedTuple):
    """On the device: tokens int64 [B], and their scores fp64 [B, 1 + 2 · top] as `logprobs.score` gives them."""

    tokens: torch.Tensor
    scores: torch.Tensor | None


class Chosen(NamedTuple):
    """On the host: a row's token, and the scores of all as `_Found` has them, empty where none were asked for."""

    tokens: list[int]
    scores: torch.Tensor


@dataclass(frozen=True)
class _Recorded:
    graph: torch.cuda.CUDAGraph
    numbers: torch.Tensor
    found: _Found


class DecodingStep:
    """The device's side of a batch: what each slot was asked for and has chosen last.

    Args:
        slots: sequences that run at once; slot number `slots` is nobody's, for a batch's idle rows.
        longest: tokens of a sequence.
        vocabulary: tokens that may come lie below it.
    """

    def __init__(self, decoder: Decoder, slots: int, longest: int, vocabulary: int | None) -> None:
        self._decoder, self._slots, self._vocabulary = decoder, slots, min(vocabulary or decoder.rows, decoder.rows)
        self._device = decoder.ranks.device
        self._width = blocks_of(longest)
        self._rotation = decoder.rotation_rows(longest)
        self._tokens = torch.zeros(slots + 1, dtype=torch.int64, device=self._device)
        self._settings = sampling_rows([Sampling()] * (slots + 1), self._vocabulary, self._device)
        self._seen: torch.Tensor | None = None  # bool [slots + 1, V], once a request has a penalty
        self._asked: dict[int, Sampling] = {}
        self._recorded: dict[_Kind, _Recorded] = {}
        self._choices: dict[int, StepChoice] = {}
        # A graph of several processes would hold their collectives; these are launched one by one.
        self._uses_graphs = self._device.type == "cuda" and decoder.ranks.replica_group is None
        # There may be a hundred kinds of steps, and one runs at a time.
        self._pool = torch.cuda.graph_pool_handle() if self._uses_graphs else None

    def enter(self, entering: Sequence[tuple[int, Sampling, Sequence[int]]]) -> None:
        """Sequences take their slots: (slot, what was asked for, tokens so far) of each."""
        slots = on_device(torch.tensor([slot for slot, _, _ in entering]), self._device)
        new = sampling_rows([asked for _, asked, _ in entering], self._vocabulary)
        for kept, given in zip(_columns(self._settings), _columns(new)):
            kept[slots] = on_device(given, self._device)
        for slot, asked, tokens in entering:
            self._asked[slot] = asked
            if asked.repetition_penalty == 1:
                continue
            if self._seen is None:
                self._seen = torch.zeros(self._slots + 1, self._vocabulary, dtype=torch.bool, device=self._device)
            self._seen[slot] = False
            ids = torch.tensor(tokens)
            self._seen[slot, on_device(ids[ids < self._vocabulary], self._device)] = True

    def choose_first(self, logits: torch.Tensor, slots: list[int], lengths: list[int], top: int | None) -> Callable[[], Chosen]:
        """The tokens behind sequences whose logits [B, V] are there, to be read later; `lengths` without them."""
        numbers = on_device(torch.tensor([slots, lengths], dtype=torch.int32), self._device)
        kind = _Kind(len(slots), *self._wants(slots), top)
        return read_later(self._choose(logits, numbers[0], numbers[1], kind))

    def launch(self, slots: list[int], positions: list[int], table: np.ndarray, top: int | None) -> Callable[[], Chosen]:
        """One more token for these slots, to be read later.

        Args:
            positions: of the tokens that were chosen last.
            table: int32 [slots + 1, M], `BlockTables.table`.
            top: how many of the most probable tokens are told beside each; None: nothing is scored.
        """
        rows = min(next_power_of_two(len(slots)), self._slots) if self._uses_graphs else len(slots)
        idle = rows - len(slots)
        numbers = np.empty((rows, _TABLE + self._width), dtype=np.int32)
        numbers[:, _SLOT], numbers[:, _POSITION] = slots + [self._slots] * idle, positions + [0] * idle
        numbers[:, _TABLE:] = table[numbers[:, _SLOT]]
        given = torch.from_numpy(numbers)
        kind = _Kind(rows, *self._wants(slots), top)
        if not self._uses_graphs:
            return read_later(self._forward(on_device(given, self._device), kind))
        if kind not in self._recorded:
            self._recorded[kind] = self._record(kind)
        made = self._recorded[kind]
        made.numbers.copy_(given.pin_memory(), non_blocking=True)
        made.graph.replay()
        return read_later(made.found)

    def _wants(self, slots: list[int]) -> tuple[bool, bool]:
        """(whether tokens are drawn, whether some are penalized)."""
        asked = [self._asked[slot] for slot in slots]
        penalized = any(one.repetition_penalty != 1 for one in asked)
        return penalized or any(not one.is_greedy for one in asked), penalized

    def _record(self, kind: _Kind) -> _Recorded:
        """A graph of the step."""
        numbers = torch.zeros(kind.rows, _TABLE + self._width, dtype=torch.int32, device=self._device)
        numbers[:, _SLOT] = self._slots
        self._choice(kind.rows)
        graph, found = recorded(lambda: self._forward(numbers, kind), self._device, self._pool)
        return _Recorded(graph, numbers, found)

    def _choice(self, rows: int) -> StepChoice:
        if rows not in self._choices:
            self._choices[rows] = choose_step(self._decoder, rows, self._rotation, self._width)
        return self._choices[rows]

    def _forward(self, numbers: torch.Tensor, kind: _Kind) -> _Found:
        """int32 [B, 2 + M] → the chosen tokens."""
        choice = self._choice(kind.rows)
        slots, positions = numbers[:, _SLOT].contiguous(), numbers[:, _POSITION].contiguous()
        tokens = self._tokens[slots]
        logits = self._decoder.decode(tokens, positions, numbers[:, _TABLE:], self._rotation, choice.products, choice.reading)
        return self._choose(logits, slots, positions + 1, kind)

    def _choose(self, logits: torch.Tensor, slots: torch.Tensor, lengths: torch.Tensor, kind: _Kind) -> _Found:
        """The next tokens, which the slots keep, and NO_TOKEN where there are no numbers to choose by."""
        ranks, scores = self._decoder.ranks, None
        if kind.top is not None:
            scores = torch.zeros(len(slots), 1 + 2 * kind.top, dtype=torch.float64, device=self._device)
        if not ranks.is_last_stage:
            chosen = torch.zeros(len(slots), dtype=torch.int64, device=self._device)
        else:
            allowed = logits[:, : self._vocabulary]
            # Of a row that holds NaN, this is one.
            chosen = best = most_probable(allowed)
            if kind.drawn:
                rows = SamplingRows(*(kept[slots] for kept in _columns(self._settings)))
                seen = self._seen[slots] if kind.penalized and self._seen is not None else None
                chosen = choose(allowed, rows, seen, lengths.long())
            if kind.top is not None:
                scores = score(logits, chosen, kind.top, self._vocabulary)
            chosen = chosen.where(allowed.gather(1, best[:, None])[:, 0].isnan().logical_not(), NO_TOKEN)
        chosen = ranks.from_last(chosen)
        kept = chosen.clamp(min=0)
        self._tokens[slots] = kept
        if kind.penalized and self._seen is not None:
            # Not by an assignment of True: that is a number of the host, which a graph cannot copy.
            self._seen.view(-1).index_fill_(0, slots * self._vocabulary + kept, True)
        return _Found(chosen, None if scores is None else ranks.from_last(scores))


def _columns(rows: SamplingRows) -> tuple[torch.Tensor, ...]:
    """Its tensors themselves; dataclasses.astuple would copy them."""
    return tuple(getattr(rows, one.name) for one in fields(rows))


def read_later(found: _Found) -> Callable[[], Chosen]:
    """Ask for them now, so that what is launched afterwards changes nothing; the result waits for them."""
    scores = torch.zeros(0, 1, dtype=torch.float64) if found.scores is None else found.scores
    if found.tokens.device.type != "cuda":
        known = Chosen(found.tokens.tolist(), scores.clone())
        return lambda: known
    copies = [torch.empty(one.shape, dtype=one.dtype, pin_memory=True) for one in (found.tokens, scores)]
    for copy, one in zip(copies, (found.tokens, scores)):
        copy.copy_(one, non_blocking=True)
    there = torch.cuda.Event()
    there.record()

    def read() -> Chosen:
        there.synchronize()
        return Chosen(copies[0].tolist(), copies[1])

    return read
