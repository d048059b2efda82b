"""torch_dist's small files, read once, without the unrestricted unpickler that torch itself uses for them.

`.metadata` is a pickle of torch.distributed.checkpoint's dataclasses. Here it becomes plain values, those become fresh objects
(`rebuilt_metadata`), and nothing reads the file again.
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
# What megatron-core writes in metadata.json; 0.19 leaves the last two out, and reads either.
_BACKENDS = {
    "sharded_backend": "torch_dist",
    "sharded_backend_version": 1,
    "common_backend": "torch",
    "common_backend_version": 1,
}
_MAX_METADATA = 64 << 20  # 400,000 chunks of usual names
_MAX_JSON = 1 << 20
MAX_OBJECT = 1 << 28  # bytes of an object beside the tensors, which is read at once
_ZIP = b"PK\3\4"
# What torch.load raises for damaged content, beside UnpicklingError.
_DAMAGED = (RuntimeError, EOFError, zipfile.BadZipFile, LookupError, TypeError, ValueError, AttributeError, AssertionError)


def read_dcp_metadata(folder: str | Path) -> Metadata:
    """The metadata of a torch_dist folder: new objects of torch's classes, with nothing in them that was not checked.

    Files that it names are inside `folder`, and what it places in them ends inside them; the chunks of each tensor cover it,
    each element once. torch's notes about how it was saved are left out.

    Raises:
        UserError: it is missing or damaged, or names anything but the metadata's own classes; nothing of it has run then.
    """
    path = Path(folder) / METADATA
    data = _read_small(path, _MAX_METADATA)
    try:
        return rebuild_metadata(read_pickle(data, ALLOWED), lambda name: inside(Path(folder), name))
    except pickle.UnpicklingError as error:
        raise UserError(f"{path} cannot be read as torch_dist metadata: {error}.") from None


def read_backends(folder: str | Path) -> dict[str, Any]:
    """Read metadata.json: formats and their versions.

    Raises:
        UserError: it is missing, or says anything but what megatron-core writes for torch_dist.
    """
    path = Path(folder) / CORE_METADATA
    data = _read_small(path, _MAX_JSON)
    try:
        content = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:  # not UTF-8, no JSON, or a number of more digits than Python converts
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
    """All of a file that has `limit` bytes at most."""
    if not path.is_file():
        raise UserError(f"{path} is missing; the checkpoint is not whole: copy it again.")
    with open(path, "rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        if size > limit:
            raise UserError(f"{path} has {size} bytes, and no checkpoint needs more than {limit}; copy it again.")
        return stream.read(size)


def inside(folder: Path, name: str) -> Path:
    """The file `name` of `folder`, which must not lead out of it, by a link neither.

    Raises:
        UserError: it leads out, or there is no such file.
    """
    path = folder / name
    # os.path answers where a name is longer than a name may be; pathlib raises.
    if Path(name).is_absolute() or ".." in Path(name).parts or not _is_below(path, folder):
        raise UserError(f"{folder / METADATA} names the file {name[:200]!r}, which lies outside the checkpoint; it was refused.")
    if not os.path.isfile(path):
        raise UserError(f"{str(path)[:300]} is missing; the checkpoint is not whole: copy it again.")
    return path


def _is_below(path: Path, folder: Path) -> bool:
    try:
        return path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError, ValueError):  # links in a circle, or no possible name
        return False


def read_common(folder: Path) -> dict[str, Any]:
    """Read common.pt: numbers, text and small tensors beside the sharded ones.

    Raises:
        UserError: it is missing or damaged, names a class that no checkpoint needs, or holds something else than a dictionary.
    """
    path = inside(folder, COMMON)
    content = load_object(path, _read_small(path, MAX_OBJECT), "the file")
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__} where a dictionary belongs; copy the checkpoint again.")
    return content


def load_object(path: Path, data: bytes, what: str) -> Any:
    """The object that torch.save wrote as `data`, a part of `path`: tensors, plain values and a few named classes.

    Raises:
        UserError: it is damaged, or asks for a class, function or amount of memory that is not allowed; nothing of it has run.
    """
    if not data.startswith(_ZIP):
        raise UserError(f"{path}: {what} is no archive of torch.save; copy it again.")
    _check_archive(path, io.BytesIO(data), what)
    return _load(path, io.BytesIO(data), what)


def load_mapped(path: Path) -> tuple[Any, Archive]:
    """`load_object` for a whole file, which is mapped into memory and not read; and the archive's description of it.

    Raises:
        UserError: as there; or it is missing, or no zip, as before torch 1.6.
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
    try:
        return read_archive(Window(stream, 0, stream.seek(0, io.SEEK_END)))
    except pickle.UnpicklingError as error:
        raise UserError(f"{path}: {what} was refused and not run: {error}.") from None
    except (zipfile.BadZipFile, struct.error, NotImplementedError, ValueError, OSError) as error:
        raise UserError(f"{path} is damaged ({str(error)[:200]}); copy it again.") from None


def _load(path: Path, source: Path | BinaryIO, what: str, **options: Any) -> Any:
    try:
        return torch.load(source, map_location="cpu", weights_only=True, **options)
    except pickle.UnpicklingError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: {what} was refused and not run: {_short(reason)}") from None
    except _DAMAGED as error:
        raise UserError(f"{path} is damaged ({_short(str(error))}); copy it again.") from None


def _short(reason: str) -> str:
    """torch's own reason, without its advice to load the file unrestrictedly."""
    reason = reason.split("from a trusted source.")[-1].split("WeightsUnpickler error: ")[-1]
    return " ".join(reason.split("Check the documentation")[0].split(" Please use")[0].split())[:200]
