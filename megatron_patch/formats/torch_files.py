"""Files of torch.save (`pytorch_model.bin`, `model_rng.pt`): their structure, with tensors as places in the file.

torch's `weights_only` loader maps the file into memory and touches no tensor's bytes. The zip's directory
(`torch_archive`) says where those lie. So tensors are streamed from the file later, and nothing is paged in.
"""

from __future__ import annotations

import argparse
import errno
import io
import pickle
import struct
import types
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy
import torch

from megatron_patch.errors import UserError
from megatron_patch.formats import dtypes
from megatron_patch.formats.archive_calls import REBUILD_TENSOR, TENSOR_WITH_ATTRIBUTES
from megatron_patch.formats.checksums import Record
from megatron_patch.formats.lazy import FileTensor, LazyTensor, Strided
from megatron_patch.formats.torch_archive import Archive, StoredTensor, Window, check_sums, read_archive, stored_tensor
from megatron_patch.formats.unpickling import Built

_WEIGHTS = {one.torch_dtype for one in dtypes.WEIGHTS}
_ZIP = b"PK\3\4"
# What torch.load raises for damaged content, besides UnpicklingError.
_DAMAGED = (RuntimeError, EOFError, zipfile.BadZipFile, LookupError, TypeError, ValueError, AttributeError, AssertionError)


class _EnumMember:
    """Stands for a member of one of Megatron's enumerations. The recorded arguments of a training run name some."""

    def __init__(self, *value: object) -> None:
        self.value = value


class _Bytes:
    """Stands for io.BytesIO. Transformer Engine keeps the scales of fp8 in one (`_extra_state`)."""

    def __setstate__(self, state: object) -> None:
        """Drop the bytes, which are not needed."""


def _safe_globals() -> list[Any]:
    """The classes that a checkpoint of 2023 may name besides tensors: of its arguments and of numpy's random state."""
    core = getattr(numpy, "_core", None) or numpy.core
    return [
        types.SimpleNamespace,
        argparse.Namespace,
        numpy.ndarray,
        numpy.dtype,
        type(numpy.dtype("uint32")),
        (core.multiarray._reconstruct, "numpy.core.multiarray._reconstruct"),
        (core.multiarray._reconstruct, "numpy._core.multiarray._reconstruct"),
        (_Bytes, "_io.BytesIO"),
        *((_EnumMember, f"megatron.{place}.{name}") for place, name in _ENUMS),
    ]


_ENUMS = (
    ("core.enums", "ModelType"),
    ("model.enums", "LayerType"),
    ("model.enums", "AttnType"),
    ("model.enums", "AttnMaskType"),
    ("model.enums", "PositionEmbeddingType"),
)


_PICKLE = b"\x80"  # what a pickle begins with, as torch wrote before version 1.6
_TAR = b"ustar"  # what a tar file has at byte 257, as torch wrote before version 0.1.10


def _cut(path: Path) -> str:
    """The sentence about a file that ends too early."""
    return f"{path} is damaged or was cut off (it has {path.stat().st_size} bytes); copy it again."


def _not_zip(path: Path) -> str:
    """The sentence about a file that is not in torch's zip format: what it is, and what to do."""
    with open(path, "rb") as stream:
        head = stream.read(512)
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
    with torch.serialization.safe_globals(_safe_globals()):
        try:
            content, archive = _load_mapped(path)
        except UserError as error:
            if "PytorchStreamReader" in str(error):
                raise UserError(_cut(path)) from None
            if "mmap can only be used" not in str(error):
                raise
            raise UserError(_not_zip(path)) from None
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            # In a file that was cut torch tries to map bytes behind its end, which the system refuses.
            raise UserError(_cut(path)) from None
    file, described = _File(path, archive, skipped), archive.value
    if only is None or not isinstance(content, dict):
        return _lazy(file, content, described, "")
    inner = _entries(described)
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
        inner = _entries(described)
        return {key: _lazy(file, item, inner.get(key), f"{name}.{key}" if name else str(key)) for key, item in value.items()}
    return value


def _entries(described: Any) -> dict[Any, Any]:
    """The entries of a dict or OrderedDict, as the archive describes it."""
    return (described.items or {}) if isinstance(described, Built) else described


def _stored(archive: Archive, described: Any) -> StoredTensor:
    """The tensor that is described by itself, as a parameter, or with Python attributes."""
    while described.callee != REBUILD_TENSOR:
        is_wrapped = described.callee == TENSOR_WITH_ATTRIBUTES  # (function, type, its arguments, attributes)
        described = Built(REBUILD_TENSOR, described.arguments[2]) if is_wrapped else described.arguments[0]
    return stored_tensor(archive, described)


def _locate(file: _File, tensor: torch.Tensor, described: Any, name: str) -> LazyTensor | torch.Tensor:
    """The place of a tensor of weights; other dtypes, single numbers and empty tensors stay as they are."""
    if tensor.dtype not in _WEIGHTS or tensor.dim() == 0 or tensor.numel() == 0:
        return tensor
    stored = _stored(file.archive, described)
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
    return _load(path, io.BytesIO(data), what)


def _load_mapped(path: Path) -> tuple[Any, Archive]:
    """(the object, the archive's description of it) for a whole file, whose tensors are mapped into memory and not
    read.

    Raises:
        UserError: as in `load_object`; or the file is missing, or it is not a zip, as before torch 1.6.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing; the checkpoint is not whole: copy it again.")
    archive = None
    with open(path, "rb") as stream:
        if stream.read(len(_ZIP)) == _ZIP:
            archive = _check_archive(path, stream, "the file")
    content = _load(path, path, "the file", mmap=True)
    assert archive is not None, "torch maps zip archives only"
    return content, archive


def _check_archive(path: Path, stream: BinaryIO, what: str) -> Archive:
    """The archive's description, once its zip, sizes and calls are checked; UserError if they are not sound."""
    try:
        return read_archive(Window(stream, 0, stream.seek(0, io.SEEK_END)))
    except pickle.UnpicklingError as error:
        raise UserError(f"{path}: {what} was refused and not run: {error}.") from None
    except (zipfile.BadZipFile, struct.error, NotImplementedError, ValueError, OSError) as error:
        raise UserError(f"{path} is damaged ({str(error)[:200]}); copy it again.") from None


def _load(path: Path, source: Path | BinaryIO, what: str, **options: Any) -> Any:
    """torch.load with `weights_only`; its errors become UserErrors that name the file."""
    try:
        return torch.load(source, map_location="cpu", weights_only=True, **options)
    except pickle.UnpicklingError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: {what} was refused and not run: {_short(reason)}") from None
    except _DAMAGED as error:
        raise UserError(f"{path} is damaged ({_short(str(error))}); copy it again.") from None


def _short(reason: str) -> str:
    """torch's reason, without its advice to load the file without restriction."""
    reason = reason.split("from a trusted source.")[-1].split("WeightsUnpickler error: ")[-1]
    return " ".join(reason.split("Check the documentation")[0].split(" Please use")[0].split())[:200]
