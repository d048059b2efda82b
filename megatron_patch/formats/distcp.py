"""Items of torch_dist's `.distcp` files. An item is a torch.save archive of one tensor; a file holds one after the
other.

`tensor_archive.py` writes them. Reading gives a place in the file and no bytes.
"""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections import OrderedDict
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import torch

from megatron_patch.errors import UserError
from megatron_patch.formats import dtypes
from megatron_patch.formats.archive_zip import Window
from megatron_patch.formats.checksums import Record
from megatron_patch.formats.lazy import FileTensor, read_bytes
from megatron_patch.formats.torch_archive import StoredTensor, read_archive, stored_tensor

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


@lru_cache(maxsize=1024)
def describe(shape: tuple[int, ...], dtype: torch.dtype) -> bytes:
    """`data.pkl` of a contiguous tensor of `shape`."""
    description = io.BytesIO()
    _Pickler(description, shape, dtype).dump(_Tensor())
    return description.getvalue()


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


def first_element(item: ItemTensor, part: tuple[slice, ...]) -> int | None:
    """The place of the first element of `part` in the item's tensor, if its elements lie one behind the other there."""
    shape = item.stored.shape
    axis = next((axis for axis, size in enumerate(shape) if size > 1), len(shape))
    behind = zip(part[axis + 1 :], shape[axis + 1 :])
    if not item.stored.is_contiguous() or any(one.indices(size) != (0, size, 1) for one, size in behind):
        return None
    return part[axis].indices(shape[axis])[0] * prod(shape[axis + 1 :]) if axis < len(shape) else 0
