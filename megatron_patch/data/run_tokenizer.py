"""Which tokenizer a run uses: `--tokenizer-path`, else the one beside the checkpoint's weights."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_patch.config import TrainConfig
from megatron_patch.data.tokenizer import load_tokenizer
from megatron_patch.errors import UserError
from megatron_patch.folders.names import checkpoint_root, holds_tokenizer


@dataclass(frozen=True)
class VocabularyOnly:
    """Stands for a tokenizer in a run from random weights on indexed data: LLaMA's token numbers, and no text."""

    vocab_size: int
    eod: int = 2
    pad: int = -1

    @property
    def unique_identifiers(self) -> OrderedDict[str, Any]:
        return OrderedDict(kind="vocabulary-only", vocab_size=self.vocab_size, eod=self.eod)


def tokenizer_folder(config: TrainConfig) -> Path | None:
    """The folder that `--tokenizer-path` names; else that of the checkpoint, the run or `--resume-from` with a tokenizer."""
    if config.options.tokenizer_path:
        return Path(config.options.tokenizer_path)
    return next((folder for folder in _own_folders(config) if holds_tokenizer(folder)), None)


def _model_folder(config: TrainConfig) -> Path | None:
    """Where config.json of the run's model is: with `--tokenizer-path` not where the tokenizer is. None from random weights."""
    return next((folder for folder in _own_folders(config) if (folder / "config.json").is_file()), None)


def _own_folders(config: TrainConfig) -> list[Path]:
    """Where the model's small files may be, in this order: its checkpoint, the run's own folder, that of `--resume-from`."""
    root = checkpoint_root(Path(config.load)) if config.load else None
    resumed = checkpoint_root(Path(config.options.resume_from)) if config.options.resume_from else None
    return [folder for folder in (root, Path(config.checkpoint_folder), resumed) if folder is not None]


def run_tokenizer(config: TrainConfig, *, text: bool) -> Any:
    """The run's tokenizer.

    Args:
        text: the data is text, so a real tokenizer is needed; indexed data already holds tokens.

    Raises:
        UserError: text without a tokenizer, or a tokenizer with more tokens than the model has rows.
    """
    folder = tokenizer_folder(config)
    if folder is None:
        if text:
            raise UserError(
                "JSON data needs a tokenizer, and the checkpoint's folder has neither tokenizer.model nor tokenizer.json: "
                "copy one there, or add --tokenizer-path FOLDER after the last argument."
            )
        return VocabularyOnly(config.model.vocab_size)
    tokenizer = load_tokenizer(folder, rows=config.vocab_size, model_folder=_model_folder(config))
    if tokenizer.vocab_size > config.vocab_size:
        raise UserError(
            f"The tokenizer in {folder} has {tokenizer.vocab_size} tokens and the model {config.vocab_size} rows; "
            f"convert with EXTRA_VOCAB_SIZE {tokenizer.vocab_size - config.model.vocab_size} or more, or use its own tokenizer."
        )
    return tokenizer
