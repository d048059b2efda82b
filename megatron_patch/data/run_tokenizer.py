"""Which tokenizer a run uses: the one that `--tokenizer-path` names, else the one beside the checkpoint's weights."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_patch.config import TrainConfig
from megatron_patch.data import Say
from megatron_patch.data.tokenizer import Tokenizer, load_tokenizer
from megatron_patch.errors import UserError
from megatron_patch.folders.hugging_face_folder import holds_tokenizer
from megatron_patch.folders.tracker import checkpoint_root


@dataclass(frozen=True)
class VocabularyOnly:
    """Stands for a tokenizer in a run from random weights on indexed data: it knows LLaMA's token numbers, and no text.

    core's GPTDataset reads `eod`, `pad` and `unique_identifiers`, which go into the names of its index files.
    """

    vocab_size: int
    eod: int = 2
    pad: int = -1

    @property
    def unique_identifiers(self) -> OrderedDict[str, Any]:
        """What tells this tokenizer from others."""
        return OrderedDict(kind="vocabulary-only", vocab_size=self.vocab_size, eod=self.eod)


def tokenizer_folder(config: TrainConfig) -> Path | None:
    """The tokenizer's folder; None without one.

    `--tokenizer-path` names it. Without that flag it is the first of `_own_folders` that holds a tokenizer.
    """
    if config.options.tokenizer_path:
        return Path(config.options.tokenizer_path)
    return next((folder for folder in _own_folders(config) if holds_tokenizer(folder)), None)


def _model_folder(config: TrainConfig) -> Path | None:
    """The folder of the model's config.json; None from random weights.

    With `--tokenizer-path` it is not the tokenizer's folder.
    """
    return next((folder for folder in _own_folders(config) if (folder / "config.json").is_file()), None)


def _own_folders(config: TrainConfig) -> list[Path]:
    """Folders that may hold the model's small files, in this order: its checkpoint's, the run's, `--resume-from`'s."""
    root = checkpoint_root(Path(config.load)) if config.load else None
    resumed = checkpoint_root(Path(config.options.resume_from)) if config.options.resume_from else None
    return [folder for folder in (root, Path(config.checkpoint_folder), resumed) if folder is not None]


def text_tokenizer(config: TrainConfig, say: Say) -> Tokenizer:
    """The tokenizer for a run's JSON data. `say` gets a line if the folder's files name different end tokens.

    Raises:
        UserError: there is no tokenizer, or it has more tokens than the model has rows.
    """
    folder = tokenizer_folder(config)
    if folder is None:
        raise UserError(
            "JSON data needs a tokenizer, and the checkpoint's folder has neither tokenizer.model nor tokenizer.json: "
            "copy one there, or add --tokenizer-path FOLDER after the last argument."
        )
    tokenizer = _load(config, folder)
    if tokenizer.end_note:
        say(f"  {tokenizer.end_note}")
    return tokenizer


def indexed_tokenizer(config: TrainConfig) -> Tokenizer | VocabularyOnly:
    """What core's GPTDataset asks about tokens. Indexed data holds them already, so a tokenizer need not be there.

    Raises:
        UserError: there is a tokenizer with more tokens than the model has rows.
    """
    folder = tokenizer_folder(config)
    return VocabularyOnly(config.model.vocab_size) if folder is None else _load(config, folder)


def _load(config: TrainConfig, folder: Path) -> Tokenizer:
    """The tokenizer in `folder`, checked against the model's rows."""
    tokenizer = load_tokenizer(folder, rows=config.vocab_size, model_folder=_model_folder(config))
    if tokenizer.vocab_size > config.vocab_size:
        raise UserError(
            f"The tokenizer in {folder} has {tokenizer.vocab_size} tokens and the model {config.vocab_size} rows; "
            f"convert with EXTRA_VOCAB_SIZE {tokenizer.vocab_size - config.model.vocab_size} or more, or use its own tokenizer."
        )
    return tokenizer
