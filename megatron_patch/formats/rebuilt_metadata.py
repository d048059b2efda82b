"""torch_dist's metadata, built anew from plain values. So torch and megatron-core get exactly what was checked.

Every object is made here by torch's own constructors, of numbers and text that were checked. Nothing else that the file
holds is in it.
"""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Callable
from itertools import pairwise, product
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

from megatron_patch.errors import UserError
from megatron_patch.formats import dtypes
from megatron_patch.formats.unpickling import Built, Name

_METADATA, _FILES = "torch.distributed.checkpoint.metadata", "torch.distributed.checkpoint.filesystem"
_SIZE, _LAYOUT, _MEMORY_FORMAT = Name("torch", "Size"), Name("torch.serialization", "_get_layout"), "_MEM_FORMAT_ENCODING"
_DTYPES = {Name("torch", one.name): one.torch_dtype for one in dtypes.ALL}
_PATHS = ("PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath", "Path", "PurePath")
_PLANS = ("SavePlan", "WriteItem", "WriteItemType", "TensorWriteData", "BytesIOWriteData")
_CLASSES = (
    "Metadata",
    "MetadataIndex",
    "TensorStorageMetadata",
    "BytesStorageMetadata",
    "ChunkStorageMetadata",
    "TensorProperties",
    "StorageMeta",
    _MEMORY_FORMAT,
)
# What a .metadata may name. Paths and plans are read and left out: torch notes where the checkpoint was written (Python
# 3.13 calls the module pathlib._local), and megatron-core keeps plans there when it caches them.
ALLOWED = {
    *((_METADATA, name) for name in _CLASSES),
    *(("torch.distributed.checkpoint.planner", name) for name in _PLANS),
    *((module, name) for module in ("pathlib", "pathlib._local") for name in _PATHS),
    *((name.module, name.name) for name in _DTYPES),
    (_FILES, "_StorageInfo"),
    (_SIZE.module, _SIZE.name),
    (_LAYOUT.module, _LAYOUT.name),
    ("torch", "strided"),
    ("builtins", "getattr"),  # Python 3.11.0 to 3.11.3 pickle members of enumerations as getattr(class, name)
}
_READ_OVER = ("planner_data", "storage_meta", "mcore_data", "all_local_plans")  # fields of Metadata that are left out
_MAX_AXES = 8
_MAX_TEXT = 2000  # characters


def rebuild_metadata(found: Any, find: Callable[[str], Path | None]) -> Metadata:
    """torch's Metadata, made of what `read_pickle` found.

    Args:
        found: what the pickle describes.
        find: gives a file's path by its name in the checkpoint; None for one that another node keeps. It raises
            UserError if the file is missing or lies outside.

    Raises:
        pickle.UnpicklingError: a field is missing, unknown, of another type or out of bounds, or a tensor's chunks do
            not cover the tensor once.
        UserError: a file is missing, ends too early, or lies outside the checkpoint.
    """
    state = _fields(found, Name(_METADATA, "Metadata"), ("state_dict_metadata", "storage_data"), (*_READ_OVER, "version"))
    places = _places(state["storage_data"], find)
    entries: dict[str, TensorStorageMetadata | BytesStorageMetadata] = {}
    used: dict[MetadataIndex, _StorageInfo] = {}
    for key, entry in _exactly(state["state_dict_metadata"], dict, "state_dict_metadata").items():
        _text(key, "a key")
        entries[key] = _entry(key, entry, places, used)
    version = state.get("version")
    return Metadata(
        state_dict_metadata=entries,
        storage_data=used,
        storage_meta=StorageMeta(),
        version=None if version is None else _text(version, "version"),
    )


def _places(found: Any, find: Callable[[str], Path | None]) -> dict[MetadataIndex, _StorageInfo]:
    """Where each chunk and each object lies. All of them lie inside the files of the checkpoint, and none in another.

    A damaged name or offset would read one tensor as another, with a sum that is right.
    """
    places: dict[MetadataIndex, _StorageInfo] = {}
    files: dict[str, tuple[Path | None, int]] = {}
    for index, info in _exactly(found, dict, "storage_data").items():
        at = _index(index)
        if at in places:
            raise pickle.UnpicklingError(f"it says twice where {_named(at)} lies")
        places[at] = _info(info, at)
        name = places[at].relative_path
        if name not in files:
            there = find(name)
            files[name] = there, there.stat().st_size if there is not None else 0
        (path, size), end = files[name], places[at].offset + places[at].length
        if path is not None and end > size:
            raise UserError(
                f"{path} is truncated: tensor or object {_named(at)} ends at byte {end}, the file at {size}; copy it again."
            )
    _check_apart(places)
    return places


def _check_apart(places: dict[MetadataIndex, _StorageInfo]) -> None:
    """Raise if two items share a byte of a file. Equal objects may share all: a conversion writes one for all."""
    ordered = sorted(places.items(), key=lambda one: (one[1].relative_path, one[1].offset, one[1].length))
    for (at, info), (other, following) in pairwise(ordered):
        if info.relative_path != following.relative_path or following.offset >= info.offset + info.length:
            continue
        if at.offset is not None or other.offset is not None or info != following:
            raise pickle.UnpicklingError(f"{_named(at)} and {_named(other)} lie at one place of {info.relative_path}")


def _index(found: Any) -> MetadataIndex:
    """A tensor's or object's name, with the chunk's offset for a tensor."""
    state = _fields(found, Name(_METADATA, "MetadataIndex"), ("fqn",), ("offset", "index"))
    offset = state.get("offset")
    return MetadataIndex(_text(state["fqn"], "fqn"), None if offset is None else _size(offset))


def _info(found: Any, at: MetadataIndex) -> _StorageInfo:
    """File, offset and length of one item. A transform, which torch would run on it, is refused."""
    names = ("relative_path", "offset", "length")
    state = _fields(found, Name(_FILES, "_StorageInfo"), names, ("transform_descriptors",))
    if state.get("transform_descriptors"):
        raise pickle.UnpicklingError(
            f"{_named(at)} is stored through a transform, a compression say, which is not read here: save the checkpoint without"
        )
    return _StorageInfo(_text(state["relative_path"], "relative_path"), _count(state["offset"]), _count(state["length"]))


def _entry(
    key: str, found: Any, places: dict[MetadataIndex, _StorageInfo], used: dict[MetadataIndex, _StorageInfo]
) -> TensorStorageMetadata | BytesStorageMetadata:
    """The entry of one tensor or object. Its places move from `places` to `used`, so that nothing is used twice."""
    if type(found) is Built and found.callee == Name(_METADATA, "BytesStorageMetadata"):
        _fields(found, found.callee, (), ())
        _use(MetadataIndex(key), places, used)
        return BytesStorageMetadata()
    state = _fields(found, Name(_METADATA, "TensorStorageMetadata"), ("properties", "size", "chunks"), ())
    size = _size(state["size"])
    chunks = []
    for part in _exactly(state["chunks"], list, "chunks"):
        fields = _fields(part, Name(_METADATA, "ChunkStorageMetadata"), ("offsets", "sizes"), ())
        chunk = ChunkStorageMetadata(_size(fields["offsets"]), _size(fields["sizes"]))
        _use(MetadataIndex(key, chunk.offsets), places, used)
        chunks.append(chunk)
    _check_tiling(key, size, chunks)
    return TensorStorageMetadata(TensorProperties(dtype=_dtype(state["properties"])), size, chunks)


def _use(at: MetadataIndex, places: dict[MetadataIndex, _StorageInfo], used: dict[MetadataIndex, _StorageInfo]) -> None:
    """Move the place of `at` from `places` to `used`."""
    if at not in places:
        twice = "has it twice" if at in used else "does not say where it lies"
        raise pickle.UnpicklingError(f"of {_named(at)}, it {twice}")
    used[at] = places.pop(at)


def _check_tiling(key: str, size: torch.Size, chunks: list[ChunkStorageMetadata]) -> None:
    """Check that the chunks cover the tensor, each element once. The time is linear in the number of chunks.

    Each chunk is a box inside the tensor's box. Count at each point the boxes that have a corner there, the tensor's
    own among them. If all counts are even, the chunks cover each element of the tensor an odd number of times. If the
    chunks' volumes also sum to the tensor's, each element is covered once.
    """
    corners: Counter[tuple[int, ...]] = Counter(_corners((0,) * len(size), size))
    for chunk in chunks:
        if len(chunk.offsets) != len(size) or len(chunk.sizes) != len(size):
            raise pickle.UnpicklingError(f"a chunk of {key[:100]} has not the {len(size)} axes of the tensor")
        ends = tuple(start + length for start, length in zip(chunk.offsets, chunk.sizes))
        if any(end > axis for end, axis in zip(ends, size)):
            raise pickle.UnpicklingError(f"a chunk of {key[:100]}, to {list(ends)}, leads out of its size {list(size)}")
        corners.update(_corners(chunk.offsets, ends))
    if sum(prod(chunk.sizes) for chunk in chunks) != prod(size) or any(count % 2 for count in corners.values()):
        raise pickle.UnpicklingError(f"the chunks of {key[:100]} leave a gap or overlap")


def _corners(starts: tuple[int, ...], ends: tuple[int, ...]) -> list[tuple[int, ...]]:
    """All 2ⁿ corners of a box of n axes."""
    return list(product(*zip(starts, ends)))


def _dtype(found: Any) -> torch.dtype:
    """The dtype that a TensorProperties holds. Its layout must be strided; its other fields are not used."""
    expected = Name(_METADATA, "TensorProperties")
    if type(found) is not Built or found.callee != expected or found.arguments or type(found.state) is not tuple:
        raise pickle.UnpicklingError("properties are no TensorProperties")
    dtype, layout, *_ = found.state or (None, None)
    is_strided = layout == Name("torch", "strided") or (
        type(layout) is Built and (layout.callee, layout.arguments) == (_LAYOUT, ("torch.strided",))
    )
    if type(dtype) is not Name or dtype not in _DTYPES or not is_strided:
        name = dtype if type(dtype) is Name else type(dtype).__name__
        raise pickle.UnpicklingError(f"a tensor has the dtype {name}, or another layout than strided")
    return _DTYPES[dtype]


def _fields(found: Any, callee: Name, required: tuple[str, ...], optional: tuple[str, ...]) -> dict[str, Any]:
    """The fields of an object of the class `callee`: all `required` ones, perhaps `optional` ones, and no other."""
    if type(found) is not Built or found.callee != callee:
        what = found.callee.name if type(found) is Built else type(found).__name__
        raise pickle.UnpicklingError(f"it has a {what} where a {callee.name} belongs")
    state = {} if found.state is None else _exactly(found.state, dict, callee.name)
    if found.arguments or not set(required) <= set(state) <= {*required, *optional}:
        names = ", ".join(str(name)[:40] for name in list(state)[:20] if type(name) is str)
        raise pickle.UnpicklingError(f"a {callee.name} has the fields {names or 'none'}; it takes {', '.join(required)}")
    return state


def _exactly(found: Any, kind: type, what: str) -> Any:
    """`found`, which must be of exactly this type, subclasses excluded."""
    if type(found) is not kind:
        name = found.callee.name if type(found) is Built else type(found).__name__
        raise pickle.UnpicklingError(f"{what} is a {name} where a {kind.__name__} belongs")
    return found


def _text(found: Any, what: str) -> str:
    """`found` as text of bounded length that can be shown."""
    if len(_exactly(found, str, what)) > _MAX_TEXT or not found.isprintable():
        raise pickle.UnpicklingError(f"{what} is longer than {_MAX_TEXT} characters, or holds some that cannot be shown")
    return found


def _count(found: Any) -> int:
    """`found` as a whole number from 0 on that fits into 64 bits."""
    if type(found) is not int or found < 0 or found >= 1 << 63:
        raise pickle.UnpicklingError(f"it has {found if type(found) is int else type(found).__name__} for an offset or a size")
    return found


def _size(found: Any) -> torch.Size:
    """`found`, a tuple or a call of torch.Size, as a shape."""
    if type(found) is Built and found.callee == _SIZE and len(found.arguments) == 1 and found.state is None:
        (found,) = found.arguments
    if type(found) is not tuple or len(found) > _MAX_AXES:
        raise pickle.UnpicklingError(f"it has no shape of up to {_MAX_AXES} axes where one belongs")
    return torch.Size([_count(one) for one in found])


def _named(at: MetadataIndex) -> str:
    """A tensor or chunk, for a sentence."""
    return f"{at.fqn[:100]}" + ("" if at.offset is None else f" at {list(at.offset)}")
