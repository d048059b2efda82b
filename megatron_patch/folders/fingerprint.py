"""Telling whether two files are the same without reading all of either. Imports no torch.

A run records this of its data and of the model that it began with. Paths change when folders are moved or renamed; a
fingerprint does not.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from megatron_patch.config import TrainConfig
from megatron_patch.data_paths import data_findings, is_json, parse_data_path
from megatron_patch.errors import UserError
from megatron_patch.folders.layout import resolve_checkpoint

_PIECE, _PIECES = 1 << 16, 16


def with_fingerprints(config: TrainConfig) -> TrainConfig:
    """`config` with the fingerprints of its training data and PRETRAIN_CHECKPOINT_PATH; "" for what cannot be read."""
    return replace(config, train_data_fingerprint=_of_data(config), load_fingerprint=_of_checkpoint(config.load))


def fingerprint(files: Iterable[tuple[str, str | Path]]) -> str:
    """32 hex digits for files given as (what to call one, path), in their order; "" where one cannot be read.

    Takes each file's length and up to 1 MiB of its bytes: all of a file that is no longer, else 16 pieces of 64 KiB,
    evenly spread from the first byte to the last. A change between the pieces that keeps a file's length is not seen.
    """
    digest = hashlib.sha256()
    try:
        for name, path in files:
            size = os.path.getsize(path)
            digest.update(f"{name}\0{size}\0".encode("utf-8", "surrogateescape"))
            with open(path, "rb") as stream:
                for place in range(_PIECES):
                    start = place * _PIECE if size <= _PIECES * _PIECE else place * (size - _PIECE) // (_PIECES - 1)
                    stream.seek(start)
                    digest.update(stream.read(_PIECE))
    except OSError:  # whoever needs the file says what is wrong with it
        return ""
    return digest.hexdigest()[:32]


def _of_data(config: TrainConfig) -> str:
    """The fingerprint of DATASET_PATH's files; for a blend the weights are part of it."""
    text, json_data = config.train_data_path, config.task == "finetune" or is_json(config.train_data_path)
    if data_findings(text, json_data):
        return ""
    if json_data:
        return fingerprint([("json", text)])
    pairs = parse_data_path(text)
    total = sum(weight for weight, _ in pairs)
    return fingerprint((f"{weight / total:.9g}{end}", prefix + end) for weight, prefix in pairs for end in (".bin", ".idx"))


def _of_checkpoint(path: str | None) -> str:
    """The fingerprint of the iteration that PRETRAIN_CHECKPOINT_PATH means now.

    A run that goes on there may change that later.
    """
    if path is None:
        return ""
    try:
        folder = resolve_checkpoint(path).folder
        files = sorted(file for file in folder.rglob("*") if file.is_file())
    except (OSError, UserError):  # gone; the reader of the arguments has said so
        return ""
    return fingerprint((str(file.relative_to(folder)), file) for file in files)
