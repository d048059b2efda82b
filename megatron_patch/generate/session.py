"""From a run's arguments to an engine that can be asked."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from megatron_patch.arguments.generation import Generation
from megatron_patch.folders.fingerprint import folder_fingerprint
from megatron_patch.generate.batch import Asking
from megatron_patch.generate.continuous_batching import Engine
from megatron_patch.generate.prompt import prompt_maker, resolve_template
from megatron_patch.generate.ranks import Ranks
from megatron_patch.generate.sampling import Sampling
from megatron_patch.generate.trained import open_model

# Templates with a place for earlier turns.
KEEPS_TURNS = ("alpaca", "llama2-chat", "tokenizer")


@dataclass(frozen=True)
class Session:
    """An engine, and how it is asked."""

    engine: Engine
    asking: Asking
    template: str


def open_session(job: Generation, ranks: Ranks, say: Callable[[str], None]) -> Session:
    """Read the checkpoint's weights and its tokenizer.

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
    asking = Asking(
        tokenizer=model.tokenizer,
        prompt=prompt_maker(template, model.tokenizer),
        prompt_length=job.prompt_length,
        answer_length=job.answer_length,
        sampling=Sampling(job.temperature, job.top_k, job.top_p, job.repetition_penalty, job.seed),
        stop=job.stop,
        system=job.system,
        run=_mark(job, model.folder, template),
    )
    return Session(Engine(decoder, job.requests, longest, model.tokenizer.vocab_size), asking, template)


def _mark(job: Generation, folder: Path, template: str) -> str:
    """Of a checkpoint and of every setting that decides an answer, so that answers of another run are told from this
    one's. Layout and number of requests at once decide none.
    """
    settings = (job.model.precision, template, job.system, job.stop, job.prompt_length, job.answer_length)
    sampling = (job.temperature, job.top_k, job.top_p, job.repetition_penalty, job.seed)
    return sha256(json.dumps([folder_fingerprint(folder), *settings, *sampling]).encode()).hexdigest()[:16]
