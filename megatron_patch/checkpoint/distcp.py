"""torch_dist's `.distcp` items: each a torch.save archive of one tensor, one after the other in a file.

An archive is an uncompressed zip of `data.pkl` (how to rebuild the tensor), `data/0` (its bytes) and two small records.
torch.save wants the tensor in memory; here the same archive is written while the bytes stream by, and read as a place in
the file. Its CRC-32 is in the zip, as in torch's.
"""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections import OrderedDict
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import torch

from megatron_patch.checkpoint.lazy import FileTensor, LazyTensor, nbytes, pieces
from megatron_patch.checkpoint.restricted_pickle import RestrictedUnpickler

_ALIGNMENT = 64
_STORAGES = {
    torch.bfloat16: torch.BFloat16Storage,
    torch.float16: torch.HalfStorage,
    torch.float32: torch.FloatStorage,
}
_STORAGE_DTYPES = {storage: dtype for dtype, storage in _STORAGES.items()}
_REBUILD = torch._utils._rebuild_tensor_v2
_READABLE = {
    ("torch._utils", "_rebuild_tensor_v2"): lambda *arguments: arguments,
    ("collections", "OrderedDict"): OrderedDict,
    ("torch", "BFloat16Storage"): torch.BFloat16Storage,
    ("torch", "HalfStorage"): torch.HalfStorage,
    ("torch", "FloatStorage"): torch.FloatStorage,
}


class _Storage:
    """Stands for the bytes of `data/0` while data.pkl is written."""


class _Tensor:
    """Stands for the tensor."""


class _Pickler(pickle.Pickler):
    """Writes data.pkl of a contiguous tensor as torch.save does."""

    def __init__(self, stream: BinaryIO, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        super().__init__(stream, protocol=2)
        self.tensor_shape, self.tensor_dtype = shape, dtype

    def persistent_id(self, obj: Any) -> Any:
        if isinstance(obj, _Storage):
            return ("storage", _STORAGES[self.tensor_dtype], "0", "cpu", prod(self.tensor_shape))
        return None

    def reducer_override(self, obj: Any) -> Any:
        if not isinstance(obj, _Tensor):
            return NotImplemented
        stride = _contiguous_stride(self.tensor_shape)
        return _REBUILD, (_Storage(), 0, self.tensor_shape, stride, False, OrderedDict())


def _contiguous_stride(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(prod(shape[axis + 1 :]) for axis in range(len(shape)))


class _Forward:
    """A sink that zipfile takes for a pipe: it only writes on, and counts what this archive has."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream, self.count = stream, 0

    def write(self, data: bytes | memoryview) -> int:
        self.count += self.stream.write(data)
        return len(data)

    def flush(self) -> None:
        """Nothing is held back."""


def write_item(stream: BinaryIO, tensor: LazyTensor, shape: tuple[int, ...], buffer: torch.Tensor) -> int:
    """Append `tensor`, to be rebuilt with `shape` of as many elements, to `stream`; the number of bytes written."""
    sink = _Forward(stream)
    description = io.BytesIO()
    _Pickler(description, shape, tensor.dtype).dump(_Tensor())
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_STORED) as archive:  # type: ignore[arg-type]
        archive.writestr(zipfile.ZipInfo("archive/data.pkl"), description.getvalue())
        archive.writestr(zipfile.ZipInfo("archive/byteorder"), b"little")
        record = zipfile.ZipInfo("archive/data/0")
        record.file_size = nbytes(tensor)
        record.extra = _padding(sink.count + 30 + len(record.filename), record.file_size)
        with archive.open(record, "w") as data:
            for _, _, piece in pieces(tensor, buffer):
                data.write(memoryview(piece.view(-1).view(torch.uint8).numpy()))
        archive.writestr(zipfile.ZipInfo("archive/version"), b"3\n")
    return sink.count


def _padding(header_end: int, size: int) -> bytes:
    """A zip extra field that moves the data after it to a multiple of 64, marked as torch marks its own ("FB")."""
    zip64 = 20 if size * 1.05 > zipfile.ZIP64_LIMIT else 0  # zipfile puts its own field in front
    length = -(header_end + zip64 + 4) % _ALIGNMENT
    return struct.pack("<2sH", b"FB", length) + b"Z" * length


class _Window(io.RawIOBase):
    """`length` bytes of a file from `offset` on, as a file of their own."""

    def __init__(self, stream: BinaryIO, offset: int, length: int) -> None:
        self.stream, self.offset, self.length, self.position = stream, offset, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, position: int, whence: int = io.SEEK_SET) -> int:
        self.position = position + (0, self.position, self.length)[whence]
        return self.position

    def read(self, size: int = -1) -> bytes:
        rest = max(0, self.length - self.position)
        self.stream.seek(self.offset + self.position)
        data = self.stream.read(rest if size < 0 else min(size, rest))
        self.position += len(data)
        return data


def locate_item(path: Path, name: str, offset: int, length: int, shape: tuple[int, ...]) -> FileTensor:
    """Where the bytes of the tensor in an item lie.

    Raises:
        ValueError: the item is damaged, or holds anything but one contiguous tensor of `shape`.
    """
    size = path.stat().st_size if path.is_file() else None
    if size is None or size < offset + length:
        found = "is missing" if size is None else f"is truncated: it has {size} bytes"
        raise ValueError(f"{path} {found}, and tensor {name} ends at byte {offset + length}; copy the checkpoint again.")
    try:
        with open(path, "rb") as stream:
            return _locate(stream, path, name, offset, length, shape)
    except (zipfile.BadZipFile, KeyError, pickle.UnpicklingError, struct.error, EOFError) as error:
        raise ValueError(f"{path}: the item of tensor {name} is damaged ({error}); copy the checkpoint again.") from None


def _locate(
    stream: BinaryIO, path: Path, name: str, offset: int, length: int, shape: tuple[int, ...]
) -> FileTensor:
    window = _Window(stream, offset, length)
    with zipfile.ZipFile(window) as archive:  # type: ignore[type-var]
        folder = archive.namelist()[0].split("/")[0]
        unpickler = RestrictedUnpickler(io.BytesIO(archive.read(f"{folder}/data.pkl")), _READABLE)
        unpickler.persistent_load = lambda identity: identity  # type: ignore[method-assign]
        (_, storage, key, _, numel), start, got, stride, *_ = unpickler.load()
        record = archive.getinfo(f"{folder}/data/{key}")
    dtype = _STORAGE_DTYPES[storage]
    if tuple(got) != tuple(shape) or tuple(stride) != _contiguous_stride(got):
        raise ValueError(f"{path}: tensor {name} is stored as {list(got)}, strides {list(stride)}; expected {list(shape)}.")
    if record.compress_type != zipfile.ZIP_STORED or record.file_size != numel * dtype.itemsize:
        raise ValueError(f"{path}: tensor {name} has {record.file_size} bytes for {numel} elements; it is damaged.")
    window.seek(record.header_offset + 26)
    name_length, extra_length = struct.unpack("<HH", window.read(4))
    data = offset + record.header_offset + 30 + name_length + extra_length
    return FileTensor(path, name, data + start * dtype.itemsize, tuple(got), dtype)
