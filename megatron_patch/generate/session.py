"""From a run's arguments to an engine that can be asked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from megatron_patch.arguments.generation import Generation
from megatron_patch.data.tokenizer import load_tokenizer
from megatron_patch.errors import UserError
from megatron_patch.folders.hugging_face_folder import is_hf_folder, is_meta_folder
from megatron_patch.folders.layout import resolve_checkpoint
from megatron_patch.generate.batch import Asking
from megatron_patch.generate.engine import Engine
from megatron_patch.generate.loading import load_decoder
from megatron_patch.generate.prompt import prompt_maker, recorded_template, resolve_template
from megatron_patch.generate.ranks import Ranks
from megatron_patch.generate.sampling import Sampling
from megatron_patch.weights.opening import open_source

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
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
    source = open_source(job.checkpoint, job.fallback, job.gqa_layout)
    rows = source.config.vocab_size + source.extra_vocab_size
    tokenizer = load_tokenizer(job.tokenizer, rows, source.root)
    if tokenizer.vocab_size > rows:
        raise UserError(
            f"the tokenizer in {job.tokenizer} has {tokenizer.vocab_size} tokens and the model {rows} rows; write "
            "--tokenizer-path and the folder of the tokenizer that the model was trained with."
        )
    for note in source.notes:
        say(note)
    longest = job.prompt_length + job.answer_length
    decoder = load_decoder(source, ranks, DTYPES[job.precision], job.requests, longest)
    recorded = None
    if not (is_hf_folder(job.checkpoint) or is_meta_folder(job.checkpoint)):
        recorded = recorded_template(resolve_checkpoint(job.checkpoint).folder)
    template = resolve_template(job.template, recorded, tokenizer, chat=job.input_file is None)
    asking = Asking(
        tokenizer=tokenizer,
        prompt=prompt_maker(template, tokenizer),
        prompt_length=job.prompt_length,
        answer_length=job.answer_length,
        sampling=Sampling(job.temperature, job.top_k, job.top_p, job.repetition_penalty, job.seed),
        stop=job.stop,
        system=job.system,
    )
    say(
        f"LLaMA with {source.config.parameter_count(source.extra_vocab_size):,} parameters in {job.precision} on "
        f"{ranks.device.type}; prompts: {template}."
    )
    return Session(Engine(decoder, job.requests, longest), asking, template)
