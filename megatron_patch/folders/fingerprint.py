"""Telling whether two files are the same without reading all of either. Imports no torch.

A run records this of its data and of the model that it began with. Paths change when folders are moved or renamed; a
fingerprint does not.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from megatron_patch.config import TrainConfig
from megatron_patch.data_paths import DataSource, JsonFiles
from megatron_patch.errors import UserError
from megatron_patch.folders.layout import resolve_checkpoint

_PIECE, _PIECES = 1 << 16, 16
_WEIGHTS = (".safetensors", ".bin", ".pth", ".pt", ".distcp", ".metadata")


@dataclass(frozen=True)
class Origin:
    """What a run was found to begin with. It is recorded with its configuration; no argument asked for it.

    Attributes:
        train_data_bytes: size of the training data's files together; 0 if they cannot be read. A run goes on only over
            the data that it began with.
        train_data_fingerprint: `fingerprint` of those files, by which data is known wherever it lies; "" if unknown.
        load_fingerprint: the same of PRETRAIN_CHECKPOINT_PATH's files.
        resumed_from: the iteration's folder of another run that this one went on from.
    """

    train_data_bytes: int = 0
    train_data_fingerprint: str = ""
    load_fingerprint: str = ""
    resumed_from: str | None = None


def observe(config: TrainConfig) -> Origin:
    """Look at the files that `config` names, as far as they can be read. Reads at most 1 MiB of each."""
    source = config.train_data
    if not source.files or source.findings():
        return Origin(load_fingerprint=_of_checkpoint(config.load))
    size = sum(os.path.getsize(file) for file in source.files)
    return Origin(size, _of_data(source), _of_checkpoint(config.load))


def compared_by_nodes(config: TrainConfig, origin: Origin, *, reads_load: bool) -> dict[str, str]:
    """The fingerprint of what each node reads for itself, by the argument that names it: all nodes must have the same.

    Args:
        reads_load: whether the weights of PRETRAIN_CHECKPOINT_PATH are read. Of its folder they alone count, since a
            download keeps notes of its own there.
    """
    found = {"TRAIN_DATASET_PATH" if config.epochs else "DATASET_PATH": origin.train_data_fingerprint}
    if config.valid_data is not None:
        found["VALID_DATASET_PATH"] = _of_data(config.valid_data)
    if reads_load and config.load is not None:
        found["PRETRAIN_CHECKPOINT_PATH"] = _of_weights(config.load)
    return found


def fingerprint(files: Iterable[tuple[str, str | Path]]) -> str:
    """32 hex digits for files given as (what to call one, path), in their order; "" where one cannot be read.

    It takes each file's length and up to 1 MiB of its bytes: all of a file that is no longer, else 16 pieces of 64
    KiB, evenly spread from the first byte to the last. A change between the pieces that keeps a file's length is not
    seen.
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


def _of_data(source: DataSource) -> str:
    """The fingerprint of the training data's files, in their order; for a blend the weights are part of it."""
    if isinstance(source, JsonFiles):
        shares = [f" {weight / sum(source.weights):.9g}" for weight in source.weights] or [""] * len(source.paths)
        return fingerprint((f"json{share}", path) for share, path in zip(shares, source.paths))
    total = sum(weight for weight, _ in source.pairs)
    names = ((f"{weight / total:.9g}{end}", prefix + end) for weight, prefix in source.pairs for end in (".bin", ".idx"))
    return fingerprint(names)


def _of_checkpoint(path: str | None) -> str:
    """The fingerprint of the iteration that PRETRAIN_CHECKPOINT_PATH means now.

    A run that goes on there may change that later.
    """
    if path is None:
        return ""
    try:
        return folder_fingerprint(resolve_checkpoint(path).folder)
    except (OSError, UserError):  # gone; the reader of the arguments has said so
        return ""


def _of_weights(path: str) -> str:
    """The same of its files of weights alone; a folder of Hugging Face's is no iteration, and taken as it is."""
    folder = Path(path)
    try:
        with contextlib.suppress(UserError):
            folder = resolve_checkpoint(path).folder
        return folder_fingerprint(folder, _WEIGHTS)
    except OSError:
        return ""


def folder_fingerprint(folder: Path, ends: tuple[str, ...] = ("",)) -> str:
    """`fingerprint` of every file below a folder, by their names in it; of those alone whose names end with `ends`.

    Raises:
        OSError: the folder cannot be listed.
    """
    files = sorted(file for file in folder.rglob("*") if file.name.endswith(ends) and file.is_file())
    return fingerprint((str(file.relative_to(folder)), file) for file in files)
