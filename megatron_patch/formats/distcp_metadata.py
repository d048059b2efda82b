"""The small files of a torch_dist folder. They are read once, and not by the unrestricted unpickler that torch uses.

`.metadata` is a pickle of torch.distributed.checkpoint's dataclasses. It is read into plain values (`unpickling`), new
objects are made of those (`rebuilt_metadata`), and nothing reads the file again.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch.distributed.checkpoint.metadata import Metadata

from megatron_patch.errors import UserError
from megatron_patch.formats.rebuilt_metadata import ALLOWED, rebuild_metadata
from megatron_patch.formats.torch_archive import Archive, Window, read_archive
from megatron_patch.formats.unpickling import read_pickle

METADATA = ".metadata"
CORE_METADATA = "metadata.json"
COMMON = "common.pt"
# What megatron-core writes in metadata.json. Core 0.19 leaves the last two out, and reads either form.
_BACKENDS = {
    "sharded_backend": "torch_dist",
    "sharded_backend_version": 1,
    "common_backend": "torch",
    "common_backend_version": 1,
}
_MAX_METADATA = 64 << 20  # bytes; enough for 400,000 chunks with names of usual length
_MAX_JSON = 1 << 20  # bytes
MAX_OBJECT = 1 << 28  # bytes of an object beside the tensors; it is read as a whole
_ZIP = b"PK\3\4"
# What torch.load raises for damaged content, besides UnpicklingError.
_DAMAGED = (RuntimeError, EOFError, zipfile.BadZipFile, LookupError, TypeError, ValueError, AttributeError, AssertionError)


def read_dcp_metadata(folder: str | Path) -> Metadata:
    """The metadata of a torch_dist folder, as new objects of torch's classes. Everything in them was checked.

    The files that it names are inside `folder`. Every chunk ends inside its file. The chunks of a tensor cover each of
    its elements once. torch's notes about how it was saved are left out.

    Raises:
        UserError: the file is missing or damaged, or it names anything but the metadata's own classes. Nothing that it
            names has run.
    """
    path = Path(folder) / METADATA
    data = _read_small(path, _MAX_METADATA)
    try:
        return rebuild_metadata(read_pickle(data, ALLOWED), lambda name: inside(Path(folder), name))
    except pickle.UnpicklingError as error:
        raise UserError(f"{path} cannot be read as torch_dist metadata: {error}.") from None


def read_backends(folder: str | Path) -> dict[str, Any]:
    """metadata.json: the names of the formats and their versions.

    Raises:
        UserError: it is missing, or holds something else than megatron-core writes for torch_dist.
    """
    path = Path(folder) / CORE_METADATA
    data = _read_small(path, _MAX_JSON)
    try:
        content = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, or a number of too many digits for Python
        raise UserError(f"{path} is no JSON ({str(error)[:100]}); copy the checkpoint again.") from None
    allowed = {"sharded_backend": str, "sharded_backend_version": int, "common_backend": str, "common_backend_version": int}
    if type(content) is not dict or any(type(value) is not allowed.get(key) for key, value in content.items()):
        raise UserError(f"{path} holds something else than {', '.join(allowed)}; copy the checkpoint again.")
    if (content.get("sharded_backend"), content.get("common_backend", "torch")) != ("torch_dist", "torch"):
        raise UserError(
            f"{path} says sharded_backend {str(content.get('sharded_backend'))[:40]!r}; torch_dist is read: convert it with core."
        )
    return content


def write_backends(folder: Path) -> None:
    """Write metadata.json, which says that `folder` is a torch_dist checkpoint."""
    (folder / CORE_METADATA).write_text(json.dumps(_BACKENDS), encoding="utf-8")


def _read_small(path: Path, limit: int) -> bytes:
    """All bytes of a file; UserError if it is missing or has more than `limit` bytes."""
    if not path.is_file():
        raise UserError(f"{path} is missing; the checkpoint is not whole: copy it again.")
    with open(path, "rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        if size > limit:
            raise UserError(f"{path} has {size} bytes, and no checkpoint needs more than {limit}; copy it again.")
        return stream.read(size)


def inside(folder: Path, name: str) -> Path:
    """The path of the file `name` of `folder`.

    Raises:
        UserError: it leads out of `folder`, by `..` or by a link, or there is no such file.
    """
    path = folder / name
    if Path(name).is_absolute() or ".." in Path(name).parts or not _is_below(path, folder):
        raise UserError(f"{folder / METADATA} names the file {name[:200]!r}, which lies outside the checkpoint; it was refused.")
    if not os.path.isfile(path):  # pathlib's is_file raises if a name is longer than the system allows
        raise UserError(f"{str(path)[:300]} is missing; the checkpoint is not whole: copy it again.")
    return path


def _is_below(path: Path, folder: Path) -> bool:
    """Whether `path` is in `folder` when links are resolved."""
    try:
        return path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError, ValueError):  # links in a circle, or a name that no file can have
        return False


def read_common(folder: Path) -> dict[str, Any]:
    """common.pt: what a checkpoint holds besides sharded tensors, as a dictionary of numbers, text and small tensors.

    Raises:
        UserError: it is missing or damaged, names a class that no checkpoint needs, or does not hold a dictionary.
    """
    path = inside(folder, COMMON)
    content = load_object(path, _read_small(path, MAX_OBJECT), "the file")
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__} where a dictionary belongs; copy the checkpoint again.")
    return content


def load_object(path: Path, data: bytes, what: str) -> Any:
    """The object that torch.save wrote: tensors, plain values and a few named classes.

    Args:
        path: the file that `data` was read from, for errors.
        data: the archive's bytes.
        what: what `data` is, for errors.

    Raises:
        UserError: it is damaged, or it asks for a class, a function or an amount of memory that is not allowed. Nothing
            that it asks for has run.
    """
    if not data.startswith(_ZIP):
        raise UserError(f"{path}: {what} is no archive of torch.save; copy it again.")
    _check_archive(path, io.BytesIO(data), what)
    return _load(path, io.BytesIO(data), what)


def load_mapped(path: Path) -> tuple[Any, Archive]:
    """(the object, the archive's description of it) for a whole file, whose tensors are mapped into memory and not
    read.

    Raises:
        UserError: as in `load_object`; or the file is missing, or it is not a zip, as before torch 1.6.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing; the checkpoint is not whole: copy it again.")
    archive = None
    with open(path, "rb") as stream:
        if stream.read(len(_ZIP)) == _ZIP:
            archive = _check_archive(path, stream, "the file")
    content = _load(path, path, "the file", mmap=True)
    assert archive is not None, "torch maps zip archives only"
    return content, archive


def _check_archive(path: Path, stream: BinaryIO, what: str) -> Archive:
    """The archive's description, once its zip, sizes and calls are checked; UserError if they are not sound."""
    try:
        return read_archive(Window(stream, 0, stream.seek(0, io.SEEK_END)))
    except pickle.UnpicklingError as error:
        raise UserError(f"{path}: {what} was refused and not run: {error}.") from None
    except (zipfile.BadZipFile, struct.error, NotImplementedError, ValueError, OSError) as error:
        raise UserError(f"{path} is damaged ({str(error)[:200]}); copy it again.") from None


def _load(path: Path, source: Path | BinaryIO, what: str, **options: Any) -> Any:
    """torch.load with `weights_only`; its errors become UserErrors that name the file."""
    try:
        return torch.load(source, map_location="cpu", weights_only=True, **options)
    except pickle.UnpicklingError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: {what} was refused and not run: {_short(reason)}") from None
    except _DAMAGED as error:
        raise UserError(f"{path} is damaged ({_short(str(error))}); copy it again.") from None


def _short(reason: str) -> str:
    """torch's reason, without its advice to load the file without restriction."""
    reason = reason.split("from a trusted source.")[-1].split("WeightsUnpickler error: ")[-1]
    return " ".join(reason.split("Check the documentation")[0].split(" Please use")[0].split())[:200]
