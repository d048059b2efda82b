"""torch_dist's `.metadata`, read without the unrestricted unpickler that torch itself uses for it.

`.metadata` is a pickle of torch.distributed.checkpoint's dataclasses. Once it has loaded here, the same bytes do nothing
else when torch loads them.
"""

from __future__ import annotations

import io
import pathlib
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import filesystem, metadata, planner
from torch.serialization import _get_layout

from megatron_patch.checkpoint.restricted_pickle import RestrictedUnpickler

METADATA = ".metadata"
COMMON = "common.pt"

_METADATA_CLASSES = (
    "Metadata",
    "MetadataIndex",
    "TensorStorageMetadata",
    "BytesStorageMetadata",
    "ChunkStorageMetadata",
    "TensorProperties",
    "StorageMeta",
    "_MEM_FORMAT_ENCODING",
)
# Plans, which megatron-core keeps beside the metadata when it caches them.
_PLAN_CLASSES = ("SavePlan", "WriteItem", "WriteItemType", "TensorWriteData", "BytesIOWriteData")
_DTYPES = ("bfloat16", "float16", "float32", "float64", "uint8", "int8", "int16", "int32", "int64", "bool")
_ALLOWED: dict[tuple[str, str], Any] = {
    **{("torch.distributed.checkpoint.metadata", name): getattr(metadata, name) for name in _METADATA_CLASSES},
    **{("torch.distributed.checkpoint.planner", name): getattr(planner, name) for name in _PLAN_CLASSES},
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"): filesystem._StorageInfo,
    **{("torch", name): getattr(torch, name) for name in _DTYPES},
    ("torch", "Size"): torch.Size,
    ("torch.serialization", "_get_layout"): _get_layout,
    ("collections", "OrderedDict"): OrderedDict,
    ("pathlib", "PosixPath"): pathlib.PurePosixPath,
    ("pathlib", "PurePosixPath"): pathlib.PurePosixPath,
}


def read_dcp_metadata(folder: str | Path) -> metadata.Metadata:
    """The `.metadata` of a torch_dist folder.

    Raises:
        ValueError: it is missing or damaged, or names anything but the metadata's own classes; nothing of it has run then.
    """
    path = Path(folder) / METADATA
    try:
        with open(path, "rb") as stream:
            found = RestrictedUnpickler(stream, _ALLOWED).load()
    except FileNotFoundError:
        raise ValueError(f"{path} is missing; the checkpoint is not whole: copy it again.") from None
    except (pickle.UnpicklingError, EOFError, AttributeError, IndexError, TypeError, ValueError, KeyError) as error:
        raise ValueError(f"{path} cannot be read as torch_dist metadata: {error}.") from None
    if not isinstance(found, metadata.Metadata) or not isinstance(found.storage_data, dict):
        raise ValueError(f"{path} holds a {type(found).__name__} where torch_dist metadata belongs; copy it again.")
    return found


def check_native_folder(folder: str | Path) -> metadata.Metadata:
    """Check every pickle of a torch_dist folder before megatron-core loads it; its metadata.

    Tensors are loaded by torch with `weights_only`; the objects beside them are not, so each is loaded so once here.

    Raises:
        ValueError: a pickle is damaged or names a class that no checkpoint needs; the message names the file.
    """
    folder = Path(folder)
    found = read_dcp_metadata(folder)
    load_weights_only(folder / COMMON)
    objects = {key for key, entry in found.state_dict_metadata.items() if isinstance(entry, metadata.BytesStorageMetadata)}
    items = {
        (info.relative_path, info.offset, info.length): index.fqn
        for index, info in found.storage_data.items()
        if index.fqn in objects
    }
    for (name, offset, length), key in sorted(items.items()):
        _check_object(folder, name, offset, length, key)
    return found


def _check_object(folder: Path, name: str, offset: int, length: int, key: str) -> None:
    path = inside(folder, name)
    with open(path, "rb") as stream:
        stream.seek(offset)
        load_weights_only(path, io.BytesIO(stream.read(length)), f"object {key}")


def inside(folder: Path, name: str) -> Path:
    """The file `name` of `folder`, which must not lead out of it."""
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise ValueError(f"{folder / METADATA} names the file {name!r}, which lies outside the checkpoint; it was refused.")
    if not (folder / name).is_file():
        raise ValueError(f"{folder / name} is missing; the checkpoint is not whole: copy it again.")
    return folder / name


def load_weights_only(path: Path, stream: Any = None, what: str = "the file", **options: Any) -> Any:
    """`torch.load` of `path` (or of `stream`, a part of it) that can build tensors and plain values and nothing else.

    Raises:
        ValueError: it is missing or damaged, or asks for a class or function that is not allowed; that has not run.
    """
    try:
        return torch.load(path if stream is None else stream, map_location="cpu", weights_only=True, **options)
    except FileNotFoundError:
        raise ValueError(f"{path} is missing; the checkpoint is not whole: copy it again.") from None
    except pickle.UnpicklingError as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: {what} was refused and not run: {_short(reason)}") from None
    except (RuntimeError, EOFError, zipfile.BadZipFile, KeyError) as error:
        raise ValueError(f"{path} is damaged ({_short(str(error))}); copy it again.") from None


def _short(reason: str) -> str:
    """torch's own reason, without its advice to load the file unrestrictedly."""
    reason = reason.split("from a trusted source.")[-1].split("WeightsUnpickler error: ")[-1]
    return " ".join(reason.split("Check the documentation")[0].split(" Please use")[0].split())[:200]
