"""torch.save's archives, checked before torch loads them.

An archive is an uncompressed zip. `data.pkl` holds the values, with tensors as calls of `_rebuild_tensor_v2`. `data/0`,
`data/1`, … hold the bytes of storages. A few small records stand beside them. torch's `weights_only` loader runs no
code, but it believes every number: it takes the memory that `data.pkl` asks for, and reads a storage's bytes from where
another record lies. So the zip, the calls and all sizes are checked here first.
"""

from __future__ import annotations

import io
import pickle
import struct
import sys
import zipfile
import zlib
from dataclasses import dataclass
from math import prod
from typing import Any, BinaryIO

from megatron_patch.formats import dtypes
from megatron_patch.formats.archive_calls import REBUILD_TENSOR, TENSOR_WITH_ATTRIBUTES, are_counts, check_call, is_count
from megatron_patch.formats.unpickling import Built, Name, Persistent, read_pickle

# Bytes of one element by the name of its storage's class.
STORAGE_ITEMSIZES = {one.storage: one.itemsize for one in dtypes.ALL} | {"UntypedStorage": 1}
_MAX_SMALL_READ = 8 << 20  # bytes of the zip's directory, and of data.pkl
_MAX_DEPTH = 100  # of nested containers; Python walks what is loaded by recursion
_MAX_VALUES = 20_000_000  # a value that is referred to many times counts as often: a loader may copy it


class Window(io.RawIOBase):
    """A part of a file as a file of its own: `length` bytes from `offset` on.

    A read of more than `_MAX_SMALL_READ` bytes raises BadZipFile. zipfile would otherwise read as much as a damaged
    directory says it is long.
    """

    def __init__(self, stream: BinaryIO, offset: int, length: int) -> None:
        self.stream, self.offset, self.length, self.position = stream, offset, length, 0

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def tell(self) -> int:
        """The position in the window, in bytes."""
        return self.position

    def seek(self, position: int, whence: int = io.SEEK_SET) -> int:
        """Move to a position in the window and return it, as files do."""
        self.position = max(0, position + (0, self.position, self.length)[whence])
        return self.position

    def read(self, size: int = -1) -> bytes:
        """Up to `size` bytes from the position on, never more than the window has.

        Raises:
            zipfile.BadZipFile: these would be more than `_MAX_SMALL_READ` bytes.
        """
        rest = max(0, self.length - self.position)
        wanted = rest if size < 0 else min(size, rest)
        if wanted > _MAX_SMALL_READ:
            raise zipfile.BadZipFile(f"its directory or description is said to have {wanted} bytes")
        self.stream.seek(self.offset + self.position)
        data = self.stream.read(wanted)
        self.position += len(data)
        return data


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
    records, sums = _records(window)
    if "byteorder" in records and _content(window, records, sums, "byteorder") != sys.byteorder.encode():
        raise zipfile.BadZipFile(f"its numbers are not {sys.byteorder}-endian")
    value = read_pickle(_content(window, records, sums, "data.pkl"), _ANY_NAME)
    storages = {name[5:]: place for name, place in records.items() if name.startswith("data/")}
    archive = Archive(value, storages, {name[5:]: one for name, one in sums.items() if name.startswith("data/")})
    _check_values(archive)
    return archive


def _content(window: Window, records: dict[str, tuple[int, int]], sums: dict[str, int], name: str) -> bytes:
    """The bytes of a small record, compared with its sum; none if it is not there."""
    start, size = records.get(name, (0, 0))
    window.seek(start)
    content = window.read(size)
    if zlib.crc32(content) != sums.get(name, zlib.crc32(content)):
        raise zipfile.BadZipFile(f"its record {name!r} has another CRC-32 than when it was written")
    return content


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


def _records(window: Window) -> tuple[dict[str, tuple[int, int]], dict[str, int]]:
    """(first byte, number of bytes) of each record, by its name in the archive's one folder; and the CRC-32 of each.

    torch can be told to write none (`torch.serialization.set_crc32_options`); then all are said to be 0.

    Records must be uncompressed, and none may overlap another. torch reads zips by other rules than zipfile: it ignores
    the case of names, and takes the folder of the record that is listed first. So two names that differ in case, or a
    second folder, are refused: torch could see something else there than what was checked.
    """
    with zipfile.ZipFile(window) as archive:
        infos, directory = sorted(archive.infolist(), key=lambda info: info.header_offset), archive.start_dir
        if archive.comment or not infos or infos[0].header_offset != 0:
            raise zipfile.BadZipFile("it has something before, behind or instead of its records")
    records: dict[str, tuple[int, int]] = {}
    folder, end = infos[0].filename.partition("/")[0] + "/", 0
    if any(info.orig_filename != info.filename or not info.filename.startswith(folder) for info in infos):
        raise zipfile.BadZipFile("its records are not those of one folder")
    if len({info.filename.casefold() for info in infos}) != len(infos):
        raise zipfile.BadZipFile("it has a record twice")
    for info in infos:
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1 or info.file_size != info.compress_size:
            raise zipfile.BadZipFile(f"its record {info.filename[:100]!r} is compressed, as torch's are not")
        window.seek(info.header_offset)
        header = window.read(30)
        if info.header_offset < end or header[:4] != b"PK\3\4" or len(header) != 30:
            raise zipfile.BadZipFile(f"its record {info.filename[:100]!r} overlaps another")
        start = info.header_offset + 30 + sum(struct.unpack("<HH", header[26:]))
        end = start + info.file_size
        if end > directory:
            raise zipfile.BadZipFile(f"its record {info.filename[:100]!r} ends behind the others")
        records[info.filename.removeprefix(folder)] = start, info.file_size
    has_sums = any(info.CRC for info in infos)
    return records, {info.filename.removeprefix(folder): info.CRC for info in infos if has_sums}


class _AnyName:
    """Allows every name: a name alone does nothing. `check_call` and then torch decide which ones may be called."""

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
    if value.callee == REBUILD_TENSOR:
        stored_tensor(archive, value)
    check_call(value)
    if value.callee == TENSOR_WITH_ATTRIBUTES:
        stored_tensor(archive, Built(REBUILD_TENSOR, value.arguments[2]))
