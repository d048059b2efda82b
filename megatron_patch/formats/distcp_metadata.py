"""torch_dist's small files, read once, without the unrestricted unpickler that torch itself uses for them.

`.metadata` is a pickle of torch.distributed.checkpoint's dataclasses. Here it becomes plain values, those become fresh objects
(`rebuilt_metadata`), and nothing reads the file again.
"""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint.metadata import Metadata

from megatron_patch.errors import UserError
from megatron_patch.formats.rebuilt_metadata import ALLOWED, rebuild_metadata
from megatron_patch.formats.torch_files import load_object
from megatron_patch.formats.unpickling import read_pickle

METADATA = ".metadata"
CORE_METADATA = "metadata.json"
COMMON = "common.pt"
_MAX_METADATA = 64 << 20  # 400,000 chunks of usual names
_MAX_JSON = 1 << 20
MAX_OBJECT = 1 << 28  # bytes of an object beside the tensors, which is read at once


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
