"""Where a checkpoint's files stand, and the small text files that describe it. Imports no torch.

ROOT/latest_checkpointed_iteration.txt    `release` after conversion, a number after training
ROOT/config.json, tokenizer files         as in the Hugging Face folder
ROOT/release/ or ROOT/iter_0000100/       megatron-core's torch_dist files, and model.json
ROOT/release/mp_rank_00[_000]/…           instead, in the layout of 2023 (read only)
"""

from __future__ import annotations

import json
import os
import re
import shutil
import zlib
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any

from megatron_patch import __version__
from megatron_patch.errors import UserError, naming
from megatron_patch.folders.durable_files import flush, write_text
from megatron_patch.folders.engine import installed_version
from megatron_patch.folders.hugging_face_folder import is_hf_folder, is_meta_folder
from megatron_patch.folders.tracker import RELEASE, TRACKER, read_tracker
from megatron_patch.formats.dtypes import WEIGHT_NAMES
from megatron_patch.formats.json_files import json_object, shown, whole_in
from megatron_patch.formats.placeholders import refuse_placeholder
from megatron_patch.llama.model_config import LlamaConfig

DESCRIPTION = "model.json"
# What stands beside the weights so that tokenizers and transformers open them.
TOKENIZER_FILES = (
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)
COMPANIONS = ("config.json", "generation_config.json", *TOKENIZER_FILES)
CORE_METADATA = "metadata.json"
_FORMAT = 1
_SUMS, _NO_SUM = "crc32", "0" * 8  # model.json's key for the sums of the small files; the place of its own


@dataclass(frozen=True)
class ModelDescription:
    """What model.json says about one iteration's folder."""

    model: LlamaConfig
    extra_vocab_size: int
    dtype: str  # bfloat16, float16 or float32
    tensor_model_parallel_size: int  # as asked for; the data does not depend on it
    pipeline_model_parallel_size: int


@dataclass(frozen=True)
class CheckpointLocation:
    """One iteration of a checkpoint: `folder` is `root`/release or `root`/iter_NNNNNNN."""

    root: Path
    folder: Path
    iteration: int | None  # None: release
    kind: str  # "native" (torch_dist) or "megatron_2023"


def iteration_folder(root: str | Path, iteration: int | None) -> Path:
    """`root`/iter_0000100, or `root`/release for None."""
    return Path(root) / (RELEASE if iteration is None else f"iter_{iteration:07d}")


def resolve_checkpoint(path: str | Path) -> CheckpointLocation:
    """The iteration that `path` means: the tracker's where `path` is a root, else `path` itself.

    Raises:
        UserError: nothing there, nothing finished there, or a Hugging Face folder.
    """
    path = Path(path)
    if not path.is_dir():
        raise UserError(f"There is no folder {path}; give a checkpoint's root, or one iteration's folder in it.")
    if _kind(path):
        return _location(path.resolve().parent, path)
    tracker = read_tracker(path)
    if tracker is None:
        raise UserError(_no_checkpoint(path))
    folder = iteration_folder(path, None if tracker == RELEASE else int(tracker))
    if not _kind(folder):
        there = "holds no finished checkpoint" if folder.is_dir() else "does not exist"
        raise UserError(f"{path / TRACKER} says {tracker}, but {folder} {there}; convert or copy the checkpoint again.")
    return _location(path, folder)


def _location(root: Path, folder: Path) -> CheckpointLocation:
    digits = folder.resolve().name.removeprefix("iter_")
    number = int(digits) if re.fullmatch("[0-9]+", digits) else None
    return CheckpointLocation(root, folder, number, _kind(folder))


def _kind(folder: Path) -> str:
    """`native`, `megatron_2023`, or nothing where `folder` is no iteration's folder."""
    if (folder / CORE_METADATA).is_file() and (folder / ".metadata").is_file():
        return "native"
    return "megatron_2023" if any(folder.glob("mp_rank_[0-9][0-9]*/model*rng.pt")) else ""


def _no_checkpoint(path: Path) -> str:
    if is_meta_folder(path) or ((path / "config.json").is_file() and is_hf_folder(path)):
        kind = "a folder as Meta publishes it" if is_meta_folder(path) else "a Hugging Face folder"
        return f"{path} is {kind}, no Megatron checkpoint; convert it first, with model_convertor.sh."
    return (
        f"{path} holds no Megatron checkpoint: no {TRACKER}, no {CORE_METADATA}, no mp_rank_ folders; "
        "give a checkpoint's root, or one iteration's folder in it."
    )


def copy_companions(source: str | Path, target: str | Path, names: tuple[str, ...] = COMPANIONS) -> list[str]:
    """Copy those of `names` that `source` has and `target` lacks, each whole or not at all; returns their names.

    Raises:
        UserError: one of them is a Git LFS pointer, or empty.
    """
    copied = [name for name in names if (Path(source) / name).is_file() and not (Path(target) / name).exists()]
    for name in copied:
        refuse_placeholder(Path(source) / name)
    for name in copied:
        partial = Path(target) / f"{name}.{os.getpid()}.partial"
        shutil.copyfile(Path(source) / name, partial)
        flush(partial)
        os.replace(partial, Path(target) / name)
    return copied


def write_model_description(
    folder: str | Path, description: ModelDescription, beside: Mapping[str, bytes] | None = None
) -> None:  # fmt: skip
    """Write model.json, with the versions that wrote it.

    Args:
        beside: name → bytes of the other small files in `folder`. Their sums and model.json's own are recorded.

    Raises:
        UserError: megatron-core is not installed, so that its version is unknown.
    """
    content = {"format": _FORMAT, **asdict(description)}
    content |= {"megatron_core": installed_version(), "megatron_patch": __version__}
    if beside is not None:
        content[_SUMS] = {name: f"{zlib.crc32(data):08x}" for name, data in beside.items()}
        content[_SUMS][DESCRIPTION] = _NO_SUM
    text = json.dumps(content, indent=2) + "\n"
    if beside is not None:
        before, _, behind = text.rpartition(_NO_SUM)
        text = f"{before}{_own_sum(text.encode(), _NO_SUM)}{behind}"
    write_text(Path(folder) / DESCRIPTION, text)


def read_model_description(location: CheckpointLocation | str | Path) -> ModelDescription | None:
    """model.json of an iteration's folder; None where there is none (a foreign or 2023 checkpoint).

    Raises:
        UserError: it is no JSON, of a newer format, or lacks a field.
    """
    folder = location.folder if isinstance(location, CheckpointLocation) else Path(location)
    path = folder / DESCRIPTION
    if not path.is_file():
        return None
    content = json_object(path)
    if content.get("format") != _FORMAT or content["format"] is True:
        got = shown(content.get("format"))
        raise UserError(f"{path} has format {got}; this version reads format {_FORMAT}: use the version that wrote it.")
    return _description(path, content)


def _own_sum(data: bytes, noted: str) -> str:
    """The CRC-32 of model.json's bytes, with zeros in the place of its own sum, which is the last one that it notes."""
    before, _, behind = data.rpartition(noted.encode())
    return f"{zlib.crc32(before + _NO_SUM.encode() + behind):08x}"


def check_small_files(folder: Path) -> None:
    """Compare the small files of an iteration's folder with the sums in its model.json; earlier versions wrote none.

    Raises:
        UserError: one is missing, or is not as it was written.
        OSError: one cannot be read.
    """
    path = folder / DESCRIPTION
    content = json_object(path) if path.is_file() else {}
    if _SUMS not in content:
        return
    sums = content[_SUMS]
    is_sound = isinstance(sums, dict) and DESCRIPTION in sums and all(Path(name).name == name for name in sums)
    if not is_sound or not all(isinstance(one, str) and re.fullmatch("[0-9a-f]{8}", one) for one in sums.values()):
        raise UserError(f"{path} does not say which files have which CRC-32; copy it again.")
    own = sums.pop(DESCRIPTION)
    with naming(path):
        data = path.read_bytes()
    _compare(path, _own_sum(data, own), own)  # first, since the others' sums are in it
    for name, wanted in sums.items():
        if not (folder / name).is_file():
            raise UserError(f"{folder / name} is missing; the checkpoint is not whole: copy it again.")
        _compare(folder / name, _sum_of_file(folder / name), wanted)


def _compare(path: Path, found: str, wanted: object) -> None:
    if found != wanted:
        raise UserError(f"{path} is damaged: it has the CRC-32 {found}, and was written with {shown(wanted)}; copy it again.")


def _sum_of_file(path: Path) -> str:
    crc = 0
    with naming(path), open(path, "rb") as stream:
        while data := stream.read(1 << 20):
            crc = zlib.crc32(data, crc)
    return f"{crc:08x}"


def _description(path: Path, content: dict[str, Any]) -> ModelDescription:
    names = [field.name for field in fields(ModelDescription)]
    missing = [name for name in names if name not in content]
    if missing:
        raise UserError(f"{path} lacks {', '.join(missing)}; convert the checkpoint again.")
    model = content["model"]
    known = {field.name for field in fields(LlamaConfig)}
    required = {field.name for field in fields(LlamaConfig) if field.default is MISSING}
    if not isinstance(model, dict) or not required <= model.keys() <= known:
        got = ", ".join(map(repr, sorted(model))) if isinstance(model, dict) else shown(model)
        raise UserError(f"{path}: `model` does not describe a LLaMA (it has {got[:300]}); convert the checkpoint again.")
    try:
        for name in ("tensor_model_parallel_size", "pipeline_model_parallel_size"):
            whole_in(content, name, 1, 1 << 20)
        whole_in(content, "extra_vocab_size", 0, 1 << 28)
        config = LlamaConfig(**model)
    except UserError as error:
        raise UserError(f"{path}: {str(error).rstrip('.')}; convert the checkpoint again.") from None
    if content["dtype"] not in WEIGHT_NAMES:
        raise UserError(f"{path}: dtype is {shown(content['dtype'])}; allowed are {', '.join(WEIGHT_NAMES)}.")
    return ModelDescription(**{name: content[name] for name in names if name != "model"}, model=config)
