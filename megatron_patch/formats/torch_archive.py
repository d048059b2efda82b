"""torch.save's archives as plain values, checked.

An archive is an uncompressed zip. `data.pkl` holds the values, with tensors as calls of `_rebuild_tensor_v2`. `data/0`,
`data/1`, … hold the bytes of storages. A few small records stand beside them. torch's `weights_only` loader runs no
code, but it believes every number: it takes the memory that `data.pkl` asks for, and reads a storage's bytes from where
another record lies. It also has a zip reader and an unpickler of its own, which need not find what others find. So it
is not used: the zip (`archive_zip`), the calls and all sizes are checked here, and `torch_files` makes the objects of
what was checked.
"""

from __future__ import annotations

import pickle
import struct
import sys
import zipfile
import zlib
from dataclasses import dataclass
from math import prod
from typing import Any

from megatron_patch.formats import dtypes
from megatron_patch.formats.archive_calls import (
    PARAMETER,
    REBUILD_TENSOR,
    TENSOR_WITH_ATTRIBUTES,
    are_counts,
    check_call,
    is_count,
)
from megatron_patch.formats.archive_zip import Window, read_records
from megatron_patch.formats.unpickling import ORDERED_DICT, Built, Name, Persistent, read_pickle

# Bytes of one element by the name of its storage's class.
STORAGE_ITEMSIZES = {one.storage: one.itemsize for one in dtypes.ALL} | {"UntypedStorage": 1}
# What reading bytes raises that are no archive of torch.save, beside UnpicklingError.
UNREADABLE = (zipfile.BadZipFile, struct.error, NotImplementedError, ValueError)
_MAX_DEPTH = 100  # of nested containers; Python walks what is loaded by recursion
_MAX_VALUES = 20_000_000  # a value that is referred to many times counts as often: a loader may copy it


@dataclass(frozen=True)
class Archive:
    """What an archive describes."""

    value: Any  # plain values, `Built` calls and `Persistent` storages
    storages: dict[str, tuple[int, int]]  # a storage's key → its first byte in the window, its number of bytes
    sums: dict[str, int]  # a storage's key → the CRC-32 of its bytes; empty where the archive was written without sums


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of an archive. `start` and `stride` count elements."""

    storage: str  # the name of the storage's class, which tells the dtype
    key: str  # of the storage
    start: int  # of its first element in the storage
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def is_contiguous(self) -> bool:
        """Whether it is row-major without gaps. The stride of an axis of one element does not matter."""
        wanted = (prod(self.shape[axis + 1 :]) for axis in range(len(self.shape)))
        return all(size == 1 or stride == want for size, stride, want in zip(self.shape, self.stride, wanted))

    def span(self) -> int:
        """The number of elements of the storage from the tensor's first to its last."""
        return _span(self.shape, self.stride)


def read_archive(window: Window) -> Archive:
    """The archive in `window`. All its sizes, offsets and calls have been checked.

    Raises:
        pickle.UnpicklingError: `data.pkl` is refused; the message says why.
        zipfile.BadZipFile: the zip is damaged or compressed, or torch does not write such ones.
    """
    records = read_records(window)
    if "byteorder" in records.places and records.content("byteorder") != sys.byteorder.encode():
        raise zipfile.BadZipFile(f"its numbers are not {sys.byteorder}-endian")
    value = read_pickle(records.content("data.pkl"), _ANY_NAME)
    storages = {name[5:]: place for name, place in records.places.items() if name.startswith("data/")}
    archive = Archive(value, storages, {name[5:]: one for name, one in records.sums.items() if name.startswith("data/")})
    _check_values(archive)
    return archive


def check_sums(archive: Archive, data: bytes) -> None:
    """Compare the storages of an archive that is in memory with their sums.

    Raises:
        zipfile.BadZipFile: one has another sum.
    """
    for key, crc in archive.sums.items():
        start, size = archive.storages[key]
        if zlib.crc32(memoryview(data)[start : start + size]) != crc:
            raise zipfile.BadZipFile(f"its storage {key[:20]!r} has another CRC-32 than when it was written")


def stored_tensor(archive: Archive, value: Any) -> StoredTensor:
    """The tensor that a call of `_rebuild_tensor_v2` describes. It lies within its storage.

    Raises:
        pickle.UnpicklingError: `value` is not such a call, or its tensor does not lie within the storage.
    """
    if type(value) is not Built or value.callee != REBUILD_TENSOR or len(value.arguments) < 4:
        raise pickle.UnpicklingError("it holds something else than a tensor")
    storage, start, shape, stride, *_ = value.arguments
    name, key, numel = _storage(archive, storage)
    if not (is_count(start) and are_counts(shape) and are_counts(stride) and len(shape) == len(stride)):
        raise pickle.UnpicklingError("it gives a tensor's place, shape or strides by other values than numbers from 0 on")
    if start + _span(shape, stride) > numel or prod(shape) > numel:
        raise pickle.UnpicklingError(f"it makes a tensor {list(shape)} of a storage of {numel} elements")
    return StoredTensor(name, key, start, shape, stride)


def entries(value: Any) -> dict[Any, Any]:
    """The entries of a dict or OrderedDict, as the archive describes it; none of anything else."""
    if type(value) is Built and value.callee == ORDERED_DICT:
        return value.items or {}
    return value if type(value) is dict else {}


def tensor_inside(archive: Archive, value: Any) -> StoredTensor:
    """The tensor that `value` describes: by itself, as a parameter, or with Python attributes.

    Raises:
        pickle.UnpicklingError: it describes none.
    """
    while type(value) is Built and value.callee in (PARAMETER, TENSOR_WITH_ATTRIBUTES):
        is_parameter = value.callee == PARAMETER  # (tensor, …); otherwise (function, type, its arguments, attributes)
        value = value.arguments[0] if is_parameter else Built(REBUILD_TENSOR, value.arguments[2])
    return stored_tensor(archive, value)


def _span(shape: tuple[int, ...], stride: tuple[int, ...]) -> int:
    """The number of elements from the first to the last of a tensor; 0 for an empty one."""
    return 0 if 0 in shape else 1 + sum((size - 1) * step for size, step in zip(shape, stride))


def _storage(archive: Archive, storage: Any) -> tuple[str, str, int]:
    """(class, key, number of elements) of a storage. Its record has exactly as many bytes."""
    identity = storage.identity if type(storage) is Persistent else None
    if type(identity) is not tuple or len(identity) != 5 or identity[0] != "storage":
        raise pickle.UnpicklingError("it names a storage otherwise than torch does")
    _, kind, key, _, numel = identity
    itemsize = STORAGE_ITEMSIZES.get(kind.name) if type(kind) is Name and kind.module in ("torch", "torch.storage") else None
    if itemsize is None or type(key) is not str or not is_count(numel):
        raise pickle.UnpicklingError("it names a storage of a kind that no checkpoint needs")
    if key not in archive.storages or archive.storages[key][1] != numel * itemsize:
        has = archive.storages[key][1] if key in archive.storages else "no"
        raise pickle.UnpicklingError(f"storage {key[:20]} has {has} bytes for {numel} elements of {itemsize}")
    return kind.name, key, numel


class _AnyName:
    """Allows every name: a name alone does nothing. `check_call` and `archive_values` decide what may be called."""

    def __contains__(self, name: object) -> bool:
        return True


_ANY_NAME = _AnyName()


def _check_values(archive: Archive) -> None:
    """Check every call in the value, from the innermost outwards, and that nothing nests too deeply or holds too much.

    It keeps its own stack of (value, whether what is inside it is done): Python's recursion would end before a hostile
    file.
    """
    sizes: dict[int, tuple[int, int]] = {}  # id → depth, values in it
    stack: list[tuple[Any, bool]] = [(archive.value, False)]
    open_now: set[int] = set()
    while stack:
        value, is_done = stack.pop()
        inner = _inner(value)
        if inner is None or id(value) in sizes:
            continue
        if not is_done:
            if id(value) in open_now:
                raise pickle.UnpicklingError("it holds a container that is inside itself")
            open_now.add(id(value))
            stack.append((value, True))
            stack += [(item, False) for item in inner]
            continue
        open_now.discard(id(value))
        found = [sizes.get(id(item), (0, 1)) for item in inner]
        depth, count = 1 + max((one[0] for one in found), default=0), 1 + sum(one[1] for one in found)
        if depth > _MAX_DEPTH or count > _MAX_VALUES:
            raise pickle.UnpicklingError("it is nested deeper, or holds more values, than any checkpoint's")
        sizes[id(value)] = depth, count
        _check_call(archive, value)


def _inner(value: Any) -> list[Any] | None:
    """What a container holds; None for a plain value."""
    if type(value) is Built:
        return [value.arguments, value.state, value.items]
    if type(value) is Persistent:
        return [value.identity]
    if type(value) is dict:
        return [*value.keys(), *value.values()]
    return list(value) if type(value) in (tuple, list) else None


def _check_call(archive: Archive, value: Any) -> None:
    """Check one call or storage, the tensors' places included."""
    if type(value) is Persistent:
        _storage(archive, value)
    if type(value) is not Built:
        return
    check_call(value)
    if value.callee in (REBUILD_TENSOR, PARAMETER, TENSOR_WITH_ATTRIBUTES):
        tensor_inside(archive, value)
