"""Many requests through one decoder. A place that an answer leaves goes to the next request (continuous batching).

Every process of a replica runs the same engine over the same requests in the same order. What it does next depends on
requests and tokens alone, so the processes need no word from each other but the chosen tokens.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch

from megatron_patch.errors import UserError
from megatron_patch.generate.cache import BlockTables, blocks_of
from megatron_patch.generate.decoder import Decoder
from megatron_patch.generate.logprobs import Score, Wanted, by_prompt, score, scores, wanted_of
from megatron_patch.generate.sampling import Sampling, choose, most_probable, sampling_rows

# Prompt tokens that one pass takes at most, if it has more than one prompt: activations of so many are small beside a
# model.
_PREFILL_TOKENS = 8192

NO_TOKEN = -1  # stands for a choice between numbers that are none, and for one that nobody asked for

END, LENGTH = "stop", "length"  # why an answer ended, in the words of OpenAI's interface


@dataclass(frozen=True)
class Request:
    """One prompt to be answered."""

    number: int  # by which its tokens are told from others'
    prompt: tuple[int, ...]  # token ids, at least one
    new_tokens: int  # at most; none where the prompt alone is scored
    sampling: Sampling = Sampling()
    ends: frozenset[int] = frozenset()  # tokens that end the answer
    logprobs: int | None = None  # how many of the most probable tokens are told with each one's score; None: no score
    scores_prompt: bool = False  # whether the prompt's tokens are scored as well


@dataclass(frozen=True)
class NewToken:
    """One token of an answer.

    Attributes:
        token: NO_TOKEN where none was asked for.
        finished: empty, or END or LENGTH with the answer's last token.
        scores: of the prompt's tokens before the first one, and of this one, as far as the request asks for them.
    """

    number: int
    token: int
    finished: str = ""
    scores: tuple[Score, ...] = ()


@dataclass
class _Sequence:
    request: Request
    tokens: list[int]  # prompt and answer so far
    slot: int = 0
    cached: int = 0  # tokens whose keys and values the cache holds
    is_told: bool = False  # whether its prompt has been scored

    @property
    def answered(self) -> int:
        return len(self.tokens) - len(self.request.prompt)


@dataclass
class Engine:
    """The queue and the running requests over one decoder.

    Args:
        slots: requests that are answered at once.
        longest: tokens of a request, prompt and answer together.
        vocabulary: token ids that may come lie below it. A model may have rows beyond its tokenizer's tokens, which no
            text has. None: all of the model's rows.
    """

    decoder: Decoder
    slots: int
    longest: int
    vocabulary: int | None = None
    waiting: deque[_Sequence] = field(default_factory=deque)
    running: list[_Sequence] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._tables = BlockTables(self.slots, self.decoder.cache.keys.shape[1], self.longest)
        self._free = list(range(self.slots - 1, -1, -1))

    @property
    def is_idle(self) -> bool:
        """Whether every request is answered."""
        return not self.waiting and not self.running

    def submit(self, request: Request) -> None:
        """Put a request in the queue."""
        assert request.prompt and request.new_tokens >= 0, "the caller has checked the request"
        assert len(request.prompt) + request.new_tokens <= self.longest, "the caller has checked the length"
        self.waiting.append(_Sequence(request, list(request.prompt)))

    def cancel(self, number: int) -> None:
        """Forget a request: its answer is complete for whoever asked, or nobody waits for it any more."""
        for sequence in [one for one in self.running if one.request.number == number]:
            self._leave(sequence)
        self.waiting = deque(one for one in self.waiting if one.request.number != number)

    def step(self) -> list[NewToken]:
        """One pass over the prompts that find room, or else one more token for each running request.

        Returns:
            The tokens that were chosen; nothing where there is nothing to do.

        Raises:
            UserError: on every process: the model's logits are no numbers.
        """
        admitted = self._admit()
        if admitted:
            return self._take(admitted, *self._prefill(admitted))
        if not self.running:
            return []
        self._make_room()
        return self._take(self.running, self._decode(self.running), {})

    def _admit(self) -> list[_Sequence]:
        """Requests that get a slot and blocks now, in the order of their coming."""
        admitted: list[_Sequence] = []
        tokens = 0
        while self.waiting and self._free:
            sequence = self.waiting[0]
            tokens += len(sequence.tokens)
            if admitted and tokens > _PREFILL_TOKENS:
                break
            slot = self._free[-1]
            # One block more than it needs now for each that runs, so that it is not put back at once.
            others = len(self.running) + len(admitted)
            if others and len(self._tables.free) < blocks_of(len(sequence.tokens) + 1) + others:
                break
            if not self._tables.grow(slot, len(sequence.tokens)):
                break
            self._free.pop()
            sequence.slot = slot
            admitted.append(self.waiting.popleft())
        self.running += admitted
        return admitted

    def _make_room(self) -> None:
        """Give a block to every running sequence whose last one is full, if need be the youngest sequence's.

        That one goes back to the queue. What it has answered is kept, and its keys and values are computed again later.
        """
        for sequence in list(self.running):
            while sequence in self.running and not self._tables.grow(sequence.slot, len(sequence.tokens)):
                youngest = self.running[-1]
                self._leave(youngest)
                youngest.cached = 0
                self.waiting.appendleft(youngest)

    def _leave(self, sequence: _Sequence) -> None:
        self.running.remove(sequence)
        self._tables.release(sequence.slot)
        self._free.append(sequence.slot)

    def _prefill(self, sequences: list[_Sequence]) -> tuple[torch.Tensor, dict[int, list[Score]]]:
        """Logits [B, V] behind each sequence; and, by the number of the request, the scores of prompts."""
        tokens: list[int] = []
        positions: list[int] = []
        places: list[int] = []
        lengths: list[int] = []
        ends: list[int] = []
        for one in sequences:
            tokens += one.tokens
            positions += range(len(one.tokens))
            places += self._tables.places(one.slot, 0, len(one.tokens))
            # What a sequence had answered before it was put back is rotated as it was then.
            prompt = len(one.request.prompt)
            lengths += [prompt] * prompt + list(range(prompt + 1, len(one.tokens) + 1))
            ends.append(len(tokens))
            one.cached = len(one.tokens)
        numbers = torch.tensor([tokens, positions, places, lengths], device=self.decoder.ranks.device)
        asking = [(one, begin) for one, begin in zip(sequences, [0, *ends]) if one.request.scores_prompt and not one.is_told]
        prompts = [(begin, one.request.prompt) for one, begin in asking]
        wanted = wanted_of(prompts, max((one.request.logprobs or 0 for one, _ in asking), default=0))
        logits, found = self.decoder.prefill(
            numbers[0], numbers[1], numbers[2], numbers[3], ends, wanted, self.vocabulary
        )  # fmt: skip
        known = scores(wanted.labels, self.decoder.ranks.from_last(found)) if wanted.rows else []
        told = {one.request.number: its for (one, _), its in zip(asking, by_prompt(prompts, known))}
        for one, _ in asking:
            one.is_told = True
        return logits, told

    def _decode(self, sequences: list[_Sequence]) -> torch.Tensor:
        """Logits [B, V] behind each sequence, whose last token is not in the cache yet."""
        rows = []
        for one in sequences:
            position = len(one.tokens) - 1
            rows.append((one.tokens[-1], position, *self._tables.places(one.slot, position, position + 1)))
            one.cached = len(one.tokens)
        device = self.decoder.ranks.device
        tokens, positions, places = torch.tensor(rows, device=device).t().contiguous()
        return self.decoder.decode(tokens, positions, places, self._tables.table([one.slot for one in sequences], device))

    def _take(self, sequences: list[_Sequence], logits: torch.Tensor, told: dict[int, list[Score]]) -> list[NewToken]:
        """Choose the next token of each sequence, and let those go whose answer is complete.

        told: the scores of prompts, by the requests' numbers.
        """
        chosen = self._chosen(sequences, logits)
        found = self._scores_of_chosen(sequences, logits, chosen)
        news = []
        for one, token in zip(list(sequences), chosen):
            request, finished = one.request, LENGTH
            if request.new_tokens:
                one.tokens.append(token)
                finished = END if token in request.ends else LENGTH if one.answered >= request.new_tokens else ""
            if finished:
                self._leave(one)
            all_scores = (*told.get(request.number, ()), *found.get(request.number, ()))
            news.append(NewToken(request.number, token if request.new_tokens else NO_TOKEN, finished, all_scores))
        return news

    def _scores_of_chosen(
        self, sequences: list[_Sequence], logits: torch.Tensor, chosen: list[int]
    ) -> dict[int, list[Score]]:  # fmt: skip
        """The score of each token that was chosen, by its request's number, where the request asks for it."""
        asking = [
            (row, one) for row, one in enumerate(sequences) if one.request.logprobs is not None and one.request.new_tokens
        ]  # fmt: skip
        if not asking:
            return {}
        rows, ranks = [row for row, _ in asking], self.decoder.ranks
        wanted = Wanted(rows, [chosen[row] for row in rows], max(one.request.logprobs or 0 for _, one in asking))
        found = torch.zeros(wanted.shape, dtype=torch.float64, device=ranks.device)
        if ranks.is_last_stage:
            labels = torch.tensor(wanted.labels, device=ranks.device)
            found = score(logits[rows], labels, wanted.count, self.vocabulary)
        known = scores(wanted.labels, ranks.from_last(found))
        return {one.request.number: [its] for (_, one), its in zip(asking, known)}

    def _chosen(self, sequences: list[_Sequence], logits: torch.Tensor) -> list[int]:
        ranks = self.decoder.ranks
        chosen = torch.zeros(len(sequences), dtype=torch.int64, device=ranks.device)
        if ranks.is_last_stage:
            logits = logits[:, : self.vocabulary]
            settings = [one.request.sampling for one in sequences]
            if all(one.is_greedy and one.repetition_penalty == 1 for one in settings):
                chosen = most_probable(logits)
            else:
                rows = sampling_rows(settings, logits.shape[1], ranks.device)
                position = torch.tensor([len(one.tokens) for one in sequences], device=ranks.device)
                chosen = choose(logits, rows, self._seen_tokens(sequences, logits), position)
            chosen = chosen.where(logits.isnan().any(dim=-1).logical_not(), NO_TOKEN)
        found = ranks.from_last(chosen).tolist()
        if NO_TOKEN in found:
            raise UserError(
                "the model gives NaN where logits should be: its weights hold NaN, or fp16 cannot hold its numbers; write "
                "bf16 or fp32 for PR, or take another checkpoint."
            )
        return found

    def _seen_tokens(self, sequences: list[_Sequence], logits: torch.Tensor) -> torch.Tensor | None:
        """bool [B, V]; None where no request has a penalty."""
        if all(one.request.sampling.repetition_penalty == 1 for one in sequences):
            return None
        seen = torch.zeros(logits.shape, dtype=torch.bool, device=logits.device)
        for row, one in enumerate(sequences):
            seen[row, torch.tensor(one.tokens, device=logits.device)] = True
        return seen


def run_all(engine: Engine, requests: Iterable[Request]) -> dict[int, list[int]]:
    """Every request's answer, token ids without the prompt; a token that ended it is the last one."""
    answers: dict[int, list[int]] = {}
    for request in requests:
        engine.submit(request)
        answers[request.number] = []
    while not engine.is_idle:
        for new in engine.step():
            answers[new.number].append(new.token)
    return answers
