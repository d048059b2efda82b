"""The small files of a torch_dist folder. They are read once, and not by the unrestricted unpickler that torch uses.

`.metadata` is a pickle of torch.distributed.checkpoint's dataclasses. It is read into plain values (`unpickling`), new
objects are made of those (`rebuilt_metadata`), and nothing reads the file again.
"""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_patch.errors import UserError, naming
from megatron_patch.formats.nodes_file import is_file, lacking, lacking_sentence
from megatron_patch.formats.torch_files import load_object
from megatron_patch.formats.unpickling import read_pickle

if TYPE_CHECKING:
    from torch.distributed.checkpoint.metadata import Metadata

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


def read_dcp_metadata(folder: str | Path, elsewhere: Collection[str] = ()) -> Metadata:
    """The metadata of a torch_dist folder, as new objects of torch's classes. Everything in them was checked.

    The files that it names are inside `folder`. Every chunk ends inside its file. The chunks of a tensor cover each of
    its elements once. torch's notes about how it was saved are left out.

    Args:
        elsewhere: files that need not be in `folder`, because other nodes keep them.

    Raises:
        UserError: the file is missing or damaged, or it names anything but the metadata's own classes. Nothing that it
            names has run.
    """
    # torch's classes cost more than a second, which who reads another format does not pay.
    from megatron_patch.formats.rebuilt_metadata import ALLOWED, rebuild_metadata

    path = Path(folder) / METADATA
    data = _read_small(path, _MAX_METADATA)
    try:
        return rebuild_metadata(
            read_pickle(data, ALLOWED), lambda name: None if name in elsewhere else inside(Path(folder), name)
        )  # fmt: skip
    except pickle.UnpicklingError as error:
        raise UserError(f"{path} cannot be read as torch_dist metadata: {error}.") from None


def kept_elsewhere(folder: Path) -> frozenset[str]:
    """The files of the checkpoint that other nodes keep and this folder lacks."""
    return frozenset(name for names in lacking(folder).values() for name in names)


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


def backends_file() -> bytes:
    """What metadata.json holds, which says that a folder is a torch_dist checkpoint."""
    return json.dumps(_BACKENDS).encode()


def _read_small(path: Path, limit: int) -> bytes:
    """All bytes of a file; UserError if it is missing or has more than `limit` bytes."""
    if not path.is_file():
        raise UserError(f"{path} is missing; the checkpoint is not whole: copy it again.")
    with naming(path), open(path, "rb") as stream:
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
    if not is_file(path):
        raise UserError(
            lacking_sentence(folder) or f"{str(path)[:300]} is missing; the checkpoint is not whole: copy it again."
        )  # fmt: skip
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
