"""A trained model as its arguments name it: opened, its tokenizer beside it, ready to be given memory for its work."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from megatron_patch.arguments.trained_model import TrainedModel
from megatron_patch.config import PER_KV_HEAD
from megatron_patch.data.tokenizer import Tokenizer, load_tokenizer
from megatron_patch.errors import UserError
from megatron_patch.folders.adapter_base import base_of, find_adapter
from megatron_patch.folders.hugging_face_folder import is_hf_folder, is_meta_folder
from megatron_patch.folders.layout import resolve_checkpoint
from megatron_patch.folders.trained_form import base_layout, form_of, read_form
from megatron_patch.formats.dtypes import of_precision
from megatron_patch.formats.json_files import shown
from megatron_patch.formats.peft_adapter import read_config
from megatron_patch.generate.decoder import Decoder
from megatron_patch.generate.loading import load_decoder
from megatron_patch.generate.ranks import Ranks
from megatron_patch.weights.adapter import with_adapter
from megatron_patch.weights.source import open_source
from megatron_patch.weights.table import Source

IS_GUESSED = "Nothing beside the checkpoint says in which form it was trained: write --template if that is another."


@dataclass(frozen=True)
class OpenModel:
    """Weights that were found and not read yet, and the tokenizer that goes with them."""

    source: Source
    tokenizer: Tokenizer
    ranks: Ranks
    dtype: torch.dtype
    folder: Path  # of the weights: one iteration's, of a checkpoint that has several
    base: Path | None  # the same of the model under a LoRA run's adapter; None where all weights are in `folder`
    gqa_layout: str  # in which order QKV rows of a checkpoint of 2023 are read
    recorded_template: str | None  # what the checkpoint was fine-tuned with, where it says so

    def decoder(self, requests: int, longest: int) -> Decoder:
        """This process's share of the weights, with a cache for `requests` sequences of up to `longest` tokens.

        Raises:
            UserError: memory does not hold one of them.
        """
        return load_decoder(self.source, self.ranks, self.dtype, requests, longest)


def open_model(model: TrainedModel, ranks: Ranks, say: Callable[[str], None]) -> OpenModel:
    """Look at every file of the checkpoint, and load its tokenizer. Of a LoRA run's, the base's files too.

    Args:
        say: prints a line, on one process.

    Raises:
        UserError: one of them cannot be read, or does not go with the other.
    """
    adapter = None if _is_published(model.checkpoint) else find_adapter(model.checkpoint)
    base = None if adapter is None else _base_of(model.checkpoint, adapter)
    layout = model.gqa_layout or PER_KV_HEAD if adapter is None else base_layout(read_form(adapter), model.gqa_layout)
    source = open_source(base or model.checkpoint, model.fallback, layout)
    if adapter is not None:  # sums are made in fp32 and rounded once, to the precision in which the model is used
        source = with_adapter(source, adapter, of_precision(model.precision).name)
    rows = source.config.vocab_size + source.extra_vocab_size
    tokenizer = load_tokenizer(model.tokenizer, rows, source.root)
    if tokenizer.vocab_size > rows:
        raise UserError(
            f"the tokenizer in {model.tokenizer} has {tokenizer.vocab_size} tokens and the model {rows} rows; write "
            "--tokenizer-path and the folder of the tokenizer that the model was trained with."
        )
    for note in source.notes:
        say(note)
    parameters = source.config.parameter_count(source.extra_vocab_size)
    say(f"LLaMA with {parameters:,} parameters in {model.precision} on {ranks.device.type}, from {model.checkpoint}.")
    return OpenModel(
        source=source,
        tokenizer=tokenizer,
        ranks=ranks,
        dtype=of_precision(model.precision).torch_dtype,
        folder=_weights_folder(model.checkpoint),
        base=None if base is None else _weights_folder(base),
        gqa_layout=layout,
        recorded_template=form_of(model.checkpoint).template,
    )


def _is_published(folder: Path) -> bool:
    """Whether it has the form in which models are handed out: Hugging Face's or Meta's."""
    return is_hf_folder(folder) or is_meta_folder(folder)


def _weights_folder(checkpoint: Path) -> Path:
    """Where the weights' files are: of a checkpoint of several iterations the one that is meant."""
    return checkpoint if _is_published(checkpoint) else resolve_checkpoint(checkpoint).folder


def _base_of(checkpoint: Path, adapter: Path) -> Path:
    """The folder of the model under the `adapter` of a LoRA run's `checkpoint`.

    Raises:
        UserError: it is not there, or holds no whole model.
    """
    try:
        return base_of(adapter)
    except UserError:
        named = shown(read_config(adapter).base)
        raise UserError(
            f"{checkpoint} is a LoRA run's, and the model under its adapter, {named}, is not there or no whole model. Put "
            "it back, or let model_convertor.sh merge both with --base and write here what it makes."
        ) from None
