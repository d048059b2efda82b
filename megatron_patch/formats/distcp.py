"""Items of torch_dist's `.distcp` files. An item is a torch.save archive of one tensor; a file holds one after the
other.

An archive is an uncompressed zip of `data.pkl` (how to rebuild the tensor), `data/0` (its bytes) and two small records.
torch.save needs the tensor in memory. Here what stands around its bytes is made alone, with their CRC-32 as torch writes
it. Reading gives a place in the file and no bytes.
"""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections import OrderedDict
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import torch

from megatron_patch.errors import UserError
from megatron_patch.formats import dtypes
from megatron_patch.formats.checksums import Record
from megatron_patch.formats.lazy import FileTensor, read_bytes
from megatron_patch.formats.past_cache import BLOCK
from megatron_patch.formats.torch_archive import StoredTensor, Window, read_archive, stored_tensor

# Of zip: a record's flag for "its sum and sizes stand behind its bytes", and what marks them there.
_SUM_BEHIND, _SUM_FOLLOWS = 0x08, 0x08074B50
_STORAGES = {one.torch_dtype: getattr(torch, one.storage) for one in dtypes.WEIGHTS}
_REBUILD = torch._utils._rebuild_tensor_v2
_DTYPES = {one.storage: one.torch_dtype for one in dtypes.ALL}


class _Storage:
    """Stands for the storage, the bytes of `data/0`, while data.pkl is written."""


class _Tensor:
    """Stands for the tensor while data.pkl is written."""


class _Pickler(pickle.Pickler):
    """Writes data.pkl for a contiguous tensor as torch.save does, without the tensor."""

    def __init__(self, stream: BinaryIO, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        super().__init__(stream, protocol=2)
        self.tensor_shape, self.tensor_dtype = shape, dtype

    def persistent_id(self, obj: Any) -> Any:
        """torch's name for a storage: its class, its record's name, its device, its number of elements."""
        if isinstance(obj, _Storage):
            return ("storage", _STORAGES[self.tensor_dtype], "0", "cpu", prod(self.tensor_shape))
        return None

    def reducer_override(self, obj: Any) -> Any:
        """The call that rebuilds the tensor: storage, first element, shape, strides, no gradient, no hooks."""
        if not isinstance(obj, _Tensor):
            return NotImplemented
        stride = _contiguous_stride(self.tensor_shape)
        return _REBUILD, (_Storage(), 0, self.tensor_shape, stride, False, OrderedDict())


def _contiguous_stride(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The strides of a row-major tensor of `shape`, in elements."""
    return tuple(prod(shape[axis + 1 :]) for axis in range(len(shape)))


class _Forward:
    """Takes what zipfile writes. Without `seek`, so that zipfile treats it as a pipe and puts sums behind the bytes."""

    def __init__(self) -> None:
        self.data, self.skipped = bytearray(), 0

    def write(self, data: bytes) -> int:
        """Append `data`."""
        self.data += data
        return len(data)

    def tell(self) -> int:
        """The place in the archive."""
        return self.skipped + len(self.data)

    def flush(self) -> None:
        """zipfile calls it; nothing is held back here."""


def around_item(shape: tuple[int, ...], dtype: torch.dtype, size: int, crc: int) -> tuple[bytes, bytes]:
    """What stands in an archive before and behind the bytes of its tensor. Both lengths are the same for every `crc`.

    The tensor's bytes begin at a whole block from the archive's start.

    Args:
        size: the tensor's, in bytes.
        crc: the CRC-32 of the tensor's bytes.
    """
    sink, description = _Forward(), io.BytesIO()
    _Pickler(description, shape, dtype).dump(_Tensor())
    # typeshed asks for a method `close`, which zipfile calls only for files that it has opened itself.
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_STORED) as archive:  # type: ignore[call-overload]
        archive.writestr(zipfile.ZipInfo("archive/data.pkl"), description.getvalue())
        archive.writestr(zipfile.ZipInfo("archive/byteorder"), b"little")
        record = zipfile.ZipInfo("archive/data/0")
        record.header_offset, record.flag_bits = sink.tell(), _SUM_BEHIND
        is_large = size > zipfile.ZIP64_LIMIT
        record.extra = _padding(sink.tell() + len(record.FileHeader(zip64=is_large)))
        sink.write(record.FileHeader(zip64=is_large))
        front = len(sink.data)
        sink.skipped = size
        record.extra = b""  # the directory need not be padded
        record.CRC, record.compress_size, record.file_size = crc, size, size
        sink.write(struct.pack("<LLQQ" if is_large else "<LLLL", _SUM_FOLLOWS, crc, size, size))
        archive.infolist().append(record)
        archive.writestr(zipfile.ZipInfo("archive/version"), b"3\n")
    return bytes(sink.data[:front]), bytes(sink.data[front:])


def _padding(header_end: int) -> bytes:
    """A zip extra field after which the data begins at a whole block. torch marks its own as "FB" as well.

    header_end: where the field begins in the archive, in bytes.
    """
    length = -(header_end + 4) % BLOCK
    return struct.pack("<2sH", b"FB", length) + b"Z" * length


@dataclass(frozen=True)
class ItemTensor:
    """The tensor of an item: the byte of the file at which its first element lies, its dtype, its shape and strides."""

    offset: int
    dtype: torch.dtype
    stored: StoredTensor
    record: Record | None  # the bytes of its storage, with their sum; None where the item was written without one


def read_item(stream: BinaryIO, path: Path, name: str, offset: int, length: int, shape: tuple[int, ...]) -> ItemTensor:
    """Describe an item of the open file `path` without reading the tensor's bytes.

    Args:
        name: the tensor's name, for errors.
        offset, length: the item's place in the file, in bytes.
        shape: what the tensor must have.

    Raises:
        UserError: the item is damaged, or holds anything but one tensor of `shape` inside its own bytes.
    """
    size = stream.seek(0, io.SEEK_END)
    if size < offset + length:
        raise UserError(
            f"{path} is truncated: it has {size} bytes, and tensor {name} ends at byte {offset + length}; "
            "copy the checkpoint again."
        )
    try:
        archive = read_archive(Window(stream, offset, length))
        stored = stored_tensor(archive, archive.value)
    except (zipfile.BadZipFile, pickle.UnpicklingError, struct.error, NotImplementedError, ValueError) as error:
        raise UserError(f"{path}: the item of tensor {name} is damaged ({error}); copy the checkpoint again.") from None
    if stored.shape != tuple(shape) or stored.storage not in _DTYPES:
        found = f"{list(stored.shape)} of {stored.storage}"
        raise UserError(f"{path}: tensor {name} is stored as {found}; expected {list(shape)}: copy the checkpoint again.")
    dtype = _DTYPES[stored.storage]
    start, size = archive.storages[stored.key]
    crc = archive.sums.get(stored.key)
    record = None if crc is None else Record(path, f"tensor {name}", offset + start, size, crc)
    return ItemTensor(offset + start + stored.start * dtype.itemsize, dtype, stored, record)


def locate_item(path: Path, name: str, offset: int, length: int, shape: tuple[int, ...]) -> FileTensor:
    """The tensor of an item as a place in the file. Arguments are those of `read_item`.

    Raises:
        UserError: the item is damaged, or holds anything but one contiguous tensor of `shape` in a dtype of weights.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing, and tensor {name} lies in it; copy the checkpoint again.")
    with open(path, "rb") as stream:
        item = read_item(stream, path, name, offset, length, shape)
    if item.dtype not in _STORAGES or not item.stored.is_contiguous():
        raise UserError(
            f"{path}: tensor {name} is stored as {item.dtype} with strides {list(item.stored.stride)}; "
            f"expected is a contiguous {list(shape)} of {', '.join(map(str, _STORAGES))}."
        )
    return FileTensor(path, name, item.offset, item.stored.shape, item.dtype, item.record)


def read_part(stream: BinaryIO, path: Path, name: str, item: ItemTensor, part: tuple[slice, ...]) -> torch.Tensor:
    """The elements `part` of an item's tensor, in memory; `part` has a slice for each axis.

    Of a row-major tensor only the wanted range of its first axis longer than 1 is read. Of another one all is read,
    from its first element to its last.

    Raises:
        UserError: the file ends inside the tensor, or all of it has been read now and has another sum than when it was
            written.
    """
    shape, itemsize = item.stored.shape, item.dtype.itemsize
    if not item.stored.is_contiguous():
        span = torch.empty(item.stored.span(), dtype=item.dtype)
        read_bytes(stream.fileno(), span, item.offset, path, name, item.record)
        return span.as_strided(shape, item.stored.stride)[part]
    axis = next((axis for axis, size in enumerate(shape) if size > 1), len(shape))
    if axis == len(shape):
        rows, first, rest = torch.empty(shape, dtype=item.dtype), 0, part
    else:
        first, last, _ = part[axis].indices(shape[axis])
        rows = torch.empty((*shape[:axis], last - first, *shape[axis + 1 :]), dtype=item.dtype)
        rest = (*part[:axis], slice(None), *part[axis + 1 :])
    read_bytes(stream.fileno(), rows, item.offset + first * prod(shape[axis + 1 :]) * itemsize, path, name, item.record)
    return rows[rest]
