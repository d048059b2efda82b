"""Files of torch.save (`pytorch_model.bin`, `model_rng.pt`): their structure, with tensors as places in the file.

The archive is checked (`torch_archive`), and the objects are made of the very values that were checked. torch.load
would read the file again, with a zip reader and an unpickler of its own, and those two could find something else in it.

No bytes of tensors are touched: the file is mapped into memory, and where they lie is known. So tensors are streamed
from the file later.
"""

from __future__ import annotations

import io
import mmap
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch

from megatron_patch.errors import UserError, naming
from megatron_patch.formats import dtypes
from megatron_patch.formats.archive_calls import PARAMETER, REBUILD_TENSOR, TENSOR_WITH_ATTRIBUTES
from megatron_patch.formats.archive_values import REFUSALS, called_value, named_value
from megatron_patch.formats.archive_zip import Window
from megatron_patch.formats.checksums import Record
from megatron_patch.formats.lazy import FileTensor, LazyTensor, Strided
from megatron_patch.formats.torch_archive import UNREADABLE, Archive, check_sums, entries, read_archive, tensor_inside
from megatron_patch.formats.unpickling import ORDERED_DICT, Built, Name, Persistent

_WEIGHTS = {one.torch_dtype for one in dtypes.WEIGHTS}
_DTYPES = {one.storage: one.torch_dtype for one in dtypes.ALL}
_ZIP = b"PK\3\4"
_PICKLE = b"\x80"  # what a pickle begins with, as torch wrote before version 1.6
_TAR = b"ustar"  # what a tar file has at byte 257, as torch wrote before version 0.1.10


def _not_zip(path: Path, head: bytes) -> str:
    """The sentence about a file that is not in torch's zip format: what it is, by its first bytes, and what to do."""
    if not head:
        return f"{path} is damaged or was cut off (it has 0 bytes); copy it again."
    if head.startswith(_PICKLE) or head[257:262] == _TAR:
        return f"{path} is in torch's format from before version 1.6; load it with torch and save it again with torch.save."
    return f"{path} is no file that torch.save wrote (it begins with {head[:16]!r}); copy it again."


@dataclass(frozen=True)
class _File:
    """A torch file whose tensors are being replaced by places in it."""

    path: Path
    archive: Archive
    skipped: Callable[[str, int], bool]  # as `read_torch_file` takes it
    records: dict[str, Record] = field(default_factory=dict)  # by a storage's key, which several tensors may have

    def record(self, key: str, name: str) -> Record | None:
        """The storage of the tensor `name`, with its sum; None where the file has no sums."""
        if key in self.archive.sums and key not in self.records:
            start, size = self.archive.storages[key]
            self.records[key] = Record(self.path, f"tensor {name}", start, size, self.archive.sums[key])
        return self.records.get(key)


def _nothing_skipped(name: str, axes: int) -> bool:
    """`read_torch_file`'s default: no tensor is skipped."""
    return False


def read_torch_file(path: Path, skipped: Callable[[str, int], bool] = _nothing_skipped, only: str | None = None) -> Any:
    """The object in `path`. Its tensors of weights are `LazyTensor`s instead of tensors.

    Args:
        path: what torch.save wrote.
        skipped: says by name and number of axes which tensors stay as they are, whatever their dtype and strides.
        only: if given, the key of the dictionary's entry in which tensors are replaced; everything else stays as it is.

    Raises:
        UserError: the file is missing, damaged, in torch's format from before 1.6, or names a class that is not
            allowed; or a tensor of weights is stored with other strides than those of a matrix with contiguous rows.
    """
    content, archive = _load_mapped(path)
    file, described = _File(path, archive, skipped), archive.value
    if only is None or not isinstance(content, dict):
        return _lazy(file, content, described, "")
    inner = entries(described)
    return {key: _lazy(file, value, inner.get(only), only) if key == only else value for key, value in content.items()}


def _lazy(file: _File, value: Any, described: Any, name: str) -> Any:
    """`value` with its tensors replaced.

    Args:
        value: what torch loaded.
        described: the same value, as the archive describes it. None below a key that is an object; no state dict has
            such keys, and tensors there stay as they are.
        name: the keys that lead to it, joined by dots.
    """
    if described is None:
        return value
    if isinstance(value, torch.Tensor):
        return value if file.skipped(name, value.dim()) else _locate(file, value, described, name)
    if isinstance(value, dict):
        inner = entries(described)
        return {key: _lazy(file, item, inner.get(key), f"{name}.{key}" if name else str(key)) for key, item in value.items()}
    return value


def _locate(file: _File, tensor: torch.Tensor, described: Any, name: str) -> LazyTensor | torch.Tensor:
    """The place of a tensor of weights; other dtypes, single numbers and empty tensors stay as they are."""
    if tensor.dtype not in _WEIGHTS or tensor.dim() == 0 or tensor.numel() == 0:
        return tensor
    stored = tensor_inside(file.archive, described)
    first_byte, _ = file.archive.storages[stored.key]
    offset = first_byte + stored.start * tensor.dtype.itemsize
    shape, record = stored.shape, file.record(stored.key, name)
    if stored.is_contiguous():
        return FileTensor(file.path, name, offset, shape, tensor.dtype, record)
    if len(shape) != 2 or stored.stride[1] != 1:
        raise UserError(
            f"{file.path}: tensor {name} is stored with strides {stored.stride}; rows must be contiguous: save it again."
        )
    return Strided(FileTensor(file.path, name, offset, (stored.span(),), tensor.dtype, record), shape, stored.stride[0])


def load_object(path: Path, data: bytes, what: str) -> Any:
    """The object that torch.save wrote: tensors, plain values and a few named classes.

    Args:
        path: the file that `data` was read from, for errors.
        data: the archive's bytes.
        what: what `data` is, for errors.

    Raises:
        UserError: it is damaged, or it asks for a class, a function or an amount of memory that is not allowed. Nothing
            that it asks for has run.
    """
    if not data.startswith(_ZIP):
        raise UserError(f"{path}: {what} is no archive of torch.save; copy it again.")
    archive = _check_archive(path, io.BytesIO(data), what)
    try:
        check_sums(archive, data)
    except zipfile.BadZipFile as error:
        raise UserError(f"{path} is damaged ({error} in {what}); copy it again.") from None
    return _made(path, archive, bytearray(data), what)


def _load_mapped(path: Path) -> tuple[Any, Archive]:
    """(the object, the archive's description of it) for a whole file, whose tensors are mapped into memory and not
    read.

    Raises:
        UserError: as in `load_object`; or the file is missing, or it is not a zip, as before torch 1.6.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing; the checkpoint is not whole: copy it again.")
    with naming(path), open(path, "rb") as stream:
        head = stream.read(512)
        if not head.startswith(_ZIP):
            raise UserError(_not_zip(path, head))
        archive = _check_archive(path, stream, "the file")
        content = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)
    return _made(path, archive, content, "the file"), archive


def _check_archive(path: Path, stream: BinaryIO, what: str) -> Archive:
    """The archive's description, once its zip, sizes and calls are checked.

    Raises:
        UserError: they are not sound.
        OSError: the file cannot be read, which says nothing against it.
    """
    try:
        return read_archive(Window(stream, 0, stream.seek(0, io.SEEK_END)))
    except pickle.UnpicklingError as error:
        raise UserError(f"{path}: {what} was refused and not run: {error}.") from None
    except UNREADABLE as error:
        raise UserError(f"{path} is damaged ({str(error)[:200]}); copy it again.") from None


def _made(path: Path, archive: Archive, content: bytearray | mmap.mmap, what: str) -> Any:
    """The object that the archive describes, with its tensors in `content`; UserError if it describes none."""
    try:
        return _Maker(archive, content).value(archive.value)
    except pickle.UnpicklingError as error:
        raise UserError(f"{path}: {what} was refused and not run: {error}.") from None


class _Maker:
    """Makes the objects that an archive describes, each once, however often it is referred to.

    A parameter becomes its tensor. Attributes, hooks, and whether a tensor is trained, are left out. What refers to
    itself was refused before.

    Args:
        content: all bytes of the archive, in memory or mapped. Tensors are views of it; what is written to one is
            written there.
    """

    def __init__(self, archive: Archive, content: bytearray | mmap.mmap) -> None:
        self.archive, self.content = archive, content
        self.done: dict[int, Any] = {}  # by the id of the value in `archive`, which keeps it alive

    def value(self, value: Any) -> Any:
        """What `value` describes; a plain one is itself.

        Raises:
            pickle.UnpicklingError: a name or a call in it means nothing.
        """
        make = _KINDS.get(type(value))
        if make is None:
            return value
        if id(value) not in self.done:
            self.done[id(value)] = make(self, value)
        return self.done[id(value)]

    def mapping(self, value: dict[Any, Any]) -> dict[Any, Any]:
        """A dict; its keys may be objects."""
        found = {}
        for key, item in value.items():
            key = self.value(key)
            try:
                found[key] = self.value(item)
            except TypeError:
                raise pickle.UnpicklingError(f"it has a {type(key).__name__} as a key") from None
        return found

    def storage(self, value: Persistent) -> Any:
        """Nothing: a storage by itself is no value."""
        raise pickle.UnpicklingError("it holds something else than a tensor")

    def call(self, value: Built) -> Any:
        """What the call would return. An OrderedDict loses the versions of modules that torch keeps beside it."""
        if value.callee in (REBUILD_TENSOR, PARAMETER, TENSOR_WITH_ATTRIBUTES):
            return self.tensor(value)
        if value.callee == ORDERED_DICT:
            return OrderedDict(self.mapping(value.items or {}))
        return called_value(value, self.value)

    def tensor(self, value: Built) -> torch.Tensor:
        """A view of the bytes in which the tensor lies."""
        stored = tensor_inside(self.archive, value)
        offset, size = self.archive.storages[stored.key]
        try:
            dtype = _DTYPES[stored.storage]
            # torch.frombuffer refuses an empty storage.
            whole = (
                torch.frombuffer(self.content, dtype=dtype, count=size // dtype.itemsize, offset=offset)
                if size
                else torch.empty(0, dtype=dtype)
            )
            return whole.as_strided(stored.shape, stored.stride, stored.start)
        except REFUSALS:  # an untyped storage; a stride of an empty tensor that torch cannot take
            raise pickle.UnpicklingError(f"it calls {value.callee} as no checkpoint does") from None


_KINDS: dict[type, Callable[[_Maker, Any], Any]] = {
    tuple: lambda maker, value: tuple(map(maker.value, value)),
    list: lambda maker, value: list(map(maker.value, value)),
    dict: _Maker.mapping,
    Name: lambda maker, value: named_value(value),
    Persistent: _Maker.storage,
    Built: _Maker.call,
}
