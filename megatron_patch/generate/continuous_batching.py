"""Many requests through one decoder. A place that an answer leaves goes to the next request (continuous batching).

Every process of a replica runs the same engine over the same requests in the same order. What it does next depends on
requests and tokens alone, so the processes need no word from each other but the chosen tokens.

On a GPU the host is one pass behind: it asks for the next pass before it reads the tokens of the one before. So it may
ask for one token more of an answer that has ended, which nobody gets.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch

from megatron_patch.errors import UserError
from megatron_patch.generate.cache import BlockTables, blocks_of
from megatron_patch.generate.decoder import Decoder
from megatron_patch.generate.decoding_step import NO_TOKEN, Chosen, DecodingStep
from megatron_patch.generate.logprobs import Score, by_prompt, scores, wanted_of
from megatron_patch.generate.prompt_graphs import Prompts
from megatron_patch.generate.sampling import Sampling

# Prompt tokens that one pass takes at most, if it has more than one prompt: activations of so many are small beside a
# model.
_PREFILL_TOKENS = 8192

# Why an answer ended: two in the words of OpenAI's interface, and where the model gave no numbers to choose by.
END, LENGTH, FAILED = "stop", "length", "error"
NO_NUMBERS = (
    "the model gives NaN where logits should be: its weights hold NaN, or fp16 cannot hold its numbers; "
    "write bf16 or fp32 for PR, or take another checkpoint."
)


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
        token: NO_TOKEN where none was asked for, or none could be chosen.
        finished: empty, or END or LENGTH with the answer's last token, or FAILED.
        scores: of the prompt's tokens before the first one, and of this one, as far as the request asks for them.
    """

    number: int
    token: int
    finished: str = ""
    scores: tuple[Score, ...] = ()


@dataclass(eq=False)
class _Sequence:
    request: Request
    tokens: list[int]  # prompt and answer so far
    slot: int = 0
    unread: int = 0  # tokens that were asked for and not read yet
    is_told: bool = False  # whether its prompt has been scored

    @property
    def length(self) -> int:
        """Of what was asked for."""
        return len(self.tokens) + self.unread

    @property
    def answered(self) -> int:
        return len(self.tokens) - len(self.request.prompt)

    @property
    def goes_on(self) -> bool:
        """Whether its answer may be longer than what was asked for."""
        return self.length < len(self.request.prompt) + self.request.new_tokens


@dataclass
class _Pass:
    """Tokens that were asked for: one for each sequence."""

    sequences: list[_Sequence]
    read: Callable[[], Chosen]
    told: dict[int, list[Score]]  # the scores of prompts, by the requests' numbers


@dataclass
class Engine:
    """The queue and the running requests over one decoder.

    Args:
        slots: requests that are answered at once.
        longest: tokens of a request, prompt and answer together.
        vocabulary: token ids that may come lie below it. A model may have rows beyond its tokenizer's tokens, which no
            text has. None: all of the model's rows.
        behind: passes that may be asked for before the first one's tokens are read; None: 1 on a GPU, else 0.
        fails_alone: whether an answer ends as FAILED where the model gives no numbers, and the others go on.
    """

    decoder: Decoder
    slots: int
    longest: int
    vocabulary: int | None = None
    waiting: deque[_Sequence] = field(default_factory=deque)
    running: list[_Sequence] = field(default_factory=list)
    behind: int | None = None
    fails_alone: bool = False

    def __post_init__(self) -> None:
        self._tables = BlockTables(self.slots, self.decoder.cache.keys.shape[1], self.longest)
        self._free = list(range(self.slots - 1, -1, -1))
        self._step = DecodingStep(self.decoder, self.slots, self.longest, self.vocabulary)
        self._prompts = Prompts(self.decoder)
        self._unread: deque[_Pass] = deque()
        if self.behind is None:
            self.behind = int(self.decoder.ranks.device.type == "cuda")

    @property
    def is_idle(self) -> bool:
        """Whether every request is answered."""
        return not self.waiting and not self.running and not self._unread

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
            The tokens that were read; nothing where there is nothing to do. While it is `behind`, these are of a pass
            before this one.

        Raises:
            UserError: on every process: the model's logits are no numbers, and not one answer alone fails.
        """
        news: list[NewToken] = []
        admitted = self._admit()
        if admitted:
            self._prefill(admitted)
        else:
            news += self._make_room()
            going_on = [one for one in self.running if one.goes_on]
            if not going_on:
                return news + self._read(0)
            self._decode(going_on)
        return news + self._read(self.behind or 0)

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

    def _make_room(self) -> list[NewToken]:
        """Give a block to every running sequence whose last one is full, if need be the youngest sequence's.

        That one goes back to the queue. What it has answered is kept, and its keys and values are computed again later.
        So everything is read first, and what was read is returned.
        """
        news: list[NewToken] = []
        for sequence in list(self.running):
            while sequence in self.running and sequence.goes_on and not self._tables.grow(sequence.slot, sequence.length):
                if self._unread:
                    news += self._read(0)
                    continue
                youngest = self.running[-1]
                self._leave(youngest)
                self.waiting.appendleft(youngest)
        return news

    def _leave(self, sequence: _Sequence) -> None:
        self.running.remove(sequence)
        self._tables.release(sequence.slot)
        self._free.append(sequence.slot)

    def _prefill(self, sequences: list[_Sequence]) -> None:
        """Ask for the token behind each sequence, none of which is in the cache yet, and for the scores of prompts."""
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
        asking = [(one, begin) for one, begin in zip(sequences, [0, *ends]) if one.request.scores_prompt and not one.is_told]
        prompts = [(begin, one.request.prompt) for one, begin in asking]
        wanted = wanted_of(prompts, max((one.request.logprobs or 0 for one, _ in asking), default=0))
        numbers = torch.tensor([tokens, positions, places, lengths])
        logits, found = self._prompts.logits(numbers, ends, wanted, self.vocabulary)
        self._step.enter([(one.slot, one.request.sampling, one.tokens) for one in sequences])
        slots = [one.slot for one in sequences]
        read = self._step.choose_first(logits, slots, [one.length for one in sequences], _top_of(sequences))
        told: dict[int, list[Score]] = {}
        if asking:
            known = scores(wanted.labels, self.decoder.ranks.from_last(found)) if found is not None else []
            told = {one.request.number: its for (one, _), its in zip(asking, by_prompt(prompts, known))}
        for one, _ in asking:
            one.is_told = True
        self._ask(sequences, read, told)

    def _decode(self, sequences: list[_Sequence]) -> None:
        """Ask for one more token for each sequence, whose last one is not in the cache yet."""
        slots, positions = [one.slot for one in sequences], [one.length - 1 for one in sequences]
        self._ask(sequences, self._step.launch(slots, positions, self._tables.table, _top_of(sequences)), {})

    def _ask(self, sequences: list[_Sequence], read: Callable[[], Chosen], told: dict[int, list[Score]]) -> None:
        for one in sequences:
            one.unread += 1
        self._unread.append(_Pass(list(sequences), read, told))

    def _read(self, behind: int) -> list[NewToken]:
        """Read all passes but the last `behind`, and let sequences go whose answer is complete."""
        news = []
        while len(self._unread) > behind:
            one_pass = self._unread.popleft()
            chosen = one_pass.read()
            for row, (one, token) in enumerate(zip(one_pass.sequences, chosen.tokens)):
                one.unread -= 1
                if one not in self.running:
                    continue  # it has ended, or nobody waits for it any more
                if token == NO_TOKEN and not self.fails_alone:
                    raise UserError(NO_NUMBERS)
                told = one_pass.told.get(one.request.number, [])
                if one.request.logprobs is not None and one.request.new_tokens:
                    told = told + scores([token], chosen.scores[row : row + 1])
                news.append(self._taken(one, token, tuple(told)))
        return news

    def _taken(self, one: _Sequence, token: int, told: tuple[Score, ...]) -> NewToken:
        """The sequence with one token more; without one where its prompt alone was to be scored, or none was found."""
        request, finished = one.request, FAILED if token == NO_TOKEN else LENGTH
        if request.new_tokens and token != NO_TOKEN:
            one.tokens.append(token)
            finished = END if token in request.ends else LENGTH if one.answered >= request.new_tokens else ""
        if finished:
            self._leave(one)
        return NewToken(request.number, token if request.new_tokens else NO_TOKEN, finished, told)


def _top_of(sequences: list[_Sequence]) -> int | None:
    """How many of the most probable tokens are told beside each new one; None where no score is asked for."""
    asked = [one.request.logprobs for one in sequences if one.request.logprobs is not None and one.request.new_tokens]
    return max(asked, default=None)


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
