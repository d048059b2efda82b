"""How a trained model is asked: from a run's arguments to an engine, from a conversation to a request, from tokens to
text.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256

from megatron_patch.arguments.generation import Generation
from megatron_patch.data.tokenizer import Tokenizer
from megatron_patch.errors import UserError
from megatron_patch.folders.fingerprint import folder_fingerprint
from megatron_patch.generate.continuous_batching import Engine, Request
from megatron_patch.generate.prompt import Prompt, prompt_maker, resolve_template
from megatron_patch.generate.ranks import Ranks
from megatron_patch.generate.sampling import Sampling
from megatron_patch.generate.text_stream import TextStream
from megatron_patch.generate.trained import IS_GUESSED, OpenModel, open_model
from megatron_patch.records.texts import require_unicode

STOP = "stop"
# Templates with a place for earlier turns.
_KEEP_TURNS = ("alpaca", "llama2-chat", "tokenizer")


@dataclass(frozen=True)
class Asking:
    """How prompts are made and answers found, for all of a run's requests. Lengths are tokens."""

    tokenizer: Tokenizer
    prompt: Prompt
    prompt_length: int
    answer_length: int
    sampling: Sampling
    stop: tuple[str, ...] = ()
    system: str = ""
    keeps_turns: bool = False  # whether the prompt has a place for earlier turns; without, each message stands alone
    run: str = ""  # a mark of the checkpoint and of everything that decides an answer

    def ids(self, turns: Sequence[dict]) -> tuple[list[int], bool]:
        """A conversation's prompt, and whether it was cut. Of a prompt that is too long the last tokens are kept.

        Raises:
            UserError: the template cannot take the conversation, or makes nothing of it; or it is no text.
        """
        begin = [{"role": "system", "content": self.system}] if self.system else []
        for turn in (*begin, *turns):
            require_unicode(turn["content"])
        ids = self.prompt([*begin, *turns])
        if not ids:
            raise UserError("the template makes an empty prompt of it; choose another --template.")
        if len(ids) <= self.prompt_length:
            return ids, False
        head = ids[:1] if ids[0] == self.tokenizer.bos and self.prompt_length > 1 else []
        return head + ids[len(ids) - self.prompt_length + len(head) :], True

    def shared_ids(self, turns: Sequence[dict], ranks: Ranks) -> tuple[list[int], bool]:
        """`ids`, the same on every process that shares the model with this one. Each of them calls this.

        A chat template may write the date, and the processes do not look at the clock in one moment.
        """
        here = self.ids(turns)
        if ranks.replica_group is None:
            return here
        ids, was_cut = json.loads(str(ranks.from_first(json.dumps(here))))
        return ids, was_cut

    def request(self, number: int, ids: Sequence[int]) -> Request:
        """The request of a prompt's token ids, with a seed of its own."""
        sampling = replace(self.sampling, seed=self.sampling.seed + number)
        ends = self.tokenizer.stops | {self.tokenizer.eod, self.tokenizer.eos}
        return Request(number, tuple(ids), self.answer_length, sampling, ends)

    def stream(self, request: Request) -> TextStream:
        """The text of the request's answer."""
        return TextStream(self.tokenizer, request.prompt, self.stop)


def add_token(stream: TextStream, token: int, ends: frozenset[int], finished: str) -> tuple[str, str]:
    """(text that is certain now, why the answer ended or nothing), after one more token.

    An end token has no text. A stop word ends the answer like an end token.
    """
    text = "" if token in ends else stream.add(token)
    if stream.is_stopped:
        return text, STOP
    return text + (stream.end() if finished else ""), finished


def open_engine(job: Generation, ranks: Ranks, say: Callable[[str], None]) -> tuple[Engine, Asking]:
    """Read the checkpoint's weights and its tokenizer: an engine, and how it is asked.

    Args:
        say: prints a line, on one process.

    Raises:
        UserError: one of them cannot be read, or does not go with the other.
    """
    model = open_model(job.model, ranks, say)
    longest = job.prompt_length + job.answer_length
    decoder = model.decoder(job.requests, longest)
    template = resolve_template(job.template, model.recorded_template, model.tokenizer, chat=job.input_file is None)
    say(f"Prompts are written in the form {template}.")
    if job.template == "auto" and template == "llama2-chat" and model.recorded_template is None:
        say(IS_GUESSED)
    asking = Asking(
        tokenizer=model.tokenizer,
        prompt=prompt_maker(template, model.tokenizer),
        prompt_length=job.prompt_length,
        answer_length=job.answer_length,
        sampling=Sampling(job.temperature, job.top_k, job.top_p, job.repetition_penalty, job.seed),
        stop=job.stop,
        system=job.system,
        keeps_turns=template in _KEEP_TURNS,
        run=_mark(job, model, template),
    )
    return Engine(decoder, job.requests, longest, model.tokenizer.vocab_size), asking


def _mark(job: Generation, model: OpenModel, template: str) -> str:
    """Of a checkpoint and of every setting that decides an answer, so that answers of another run are told from this
    one's. Layout and number of requests at once decide none.
    """
    base = "" if model.base is None else folder_fingerprint(model.base)
    # What a checkpoint does not say of itself comes from MODEL_SIZE and --gqa-layout.
    rows = model.gqa_layout if model.source.kind == "megatron_2023" else ""
    weights = (folder_fingerprint(model.folder), base, asdict(model.source.config), rows, job.model.precision)
    text = (model.tokenizer.fingerprint, model.tokenizer.answer_end, template, job.system, job.stop)
    lengths = (job.prompt_length, job.answer_length)
    sampling = (job.temperature, job.top_k, job.top_p, job.repetition_penalty, job.seed)
    return sha256(json.dumps([weights, text, lengths, sampling]).encode()).hexdigest()[:16]
