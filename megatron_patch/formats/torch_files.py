"""Reads files of torch.save (`pytorch_model.bin`, `model_rng.pt`): the structure, with tensors as places in the file.

torch's `weights_only` loader maps the file into memory and touches no tensor's bytes. Where these lie is known from the zip's
directory (`torch_archive`), so tensors are streamed from the file instead of being paged in.
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy
import torch

from megatron_patch.errors import UserError
from megatron_patch.formats import dtypes
from megatron_patch.formats.archive_calls import REBUILD_TENSOR, TENSOR_WITH_ATTRIBUTES
from megatron_patch.formats.lazy import FileTensor, LazyTensor, Strided
from megatron_patch.formats.torch_archive import Archive, StoredTensor, Window, read_archive, stored_tensor
from megatron_patch.formats.unpickling import Built

_WEIGHTS = {one.torch_dtype for one in dtypes.WEIGHTS}
_ZIP = b"PK\3\4"
# What torch.load raises for damaged content, beside UnpicklingError.
_DAMAGED = (RuntimeError, EOFError, zipfile.BadZipFile, LookupError, TypeError, ValueError, AttributeError, AssertionError)


class _EnumMember:
    """Stands for a member of megatron's enumerations, which the arguments of a training run name."""

    def __init__(self, *value: object) -> None:
        self.value = value


class _Bytes:
    """Stands for io.BytesIO, in which Transformer Engine keeps the scales of fp8 (`_extra_state`)."""

    def __setstate__(self, state: object) -> None:
        """Its bytes are not needed."""


def _safe_globals() -> list[Any]:
    """The classes that a checkpoint of 2023 may name beyond tensors: its arguments, and numpy's random state."""
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


# Pickles begin with the first, tar files of torch before 0.1.10 have the second at byte 257.
_PICKLE, _TAR = b"\x80", b"ustar"


def _cut(path: Path) -> str:
    return f"{path} is damaged or was cut off (it has {path.stat().st_size} bytes); copy it again."


def _not_zip(path: Path) -> str:
    """A sentence about a file that is not in torch's zip format: what it is, and what to do."""
    with open(path, "rb") as stream:
        head = stream.read(512)
    if head.startswith(_PICKLE) or head[257:262] == _TAR:
        return f"{path} is in torch's format from before version 1.6; load it with torch and save it again with torch.save."
    return f"{path} is no file that torch.save wrote (it begins with {head[:16]!r}); copy it again."


@dataclass(frozen=True)
class _File:
    """A torch file while its tensors are replaced by places in it."""

    path: Path
    archive: Archive
    skipped: Callable[[str, int], bool]  # as `read_torch_file` takes it


def _nothing_skipped(name: str, axes: int) -> bool:
    return False


def read_torch_file(path: Path, skipped: Callable[[str, int], bool] = _nothing_skipped, only: str | None = None) -> Any:
    """The object in `path`, every floating-point tensor of two or fewer axes in it a `LazyTensor`.

    Args:
        path: what torch.save wrote.
        skipped: says by name and number of axes which tensors are given as they are, whatever their dtype and strides.
        only: the key of a dictionary's entry that alone is treated so; what stands beside it may lie in any way.

    Raises:
        UserError: it is missing, damaged, of torch's format from before 1.6, or names a class that is not allowed.
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
            # torch maps what it takes for a file's end, which lies outside of one that was cut.
            raise UserError(_cut(path)) from None
    file, described = _File(path, archive, skipped), archive.value
    if only is None or not isinstance(content, dict):
        return _lazy(file, content, described, "")
    inner = _entries(described)
    return {key: _lazy(file, value, inner.get(only), only) if key == only else value for key, value in content.items()}


def _lazy(file: _File, value: Any, described: Any, name: str) -> Any:
    """`value`, as torch loaded it, with places for its tensors; `described` is the same value as the archive describes it.

    It is None below a key that is an object, which no state dict has; tensors there stay as they are.
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
    """The entries of a described dict or OrderedDict."""
    return (described.items or {}) if isinstance(described, Built) else described


def _stored(archive: Archive, described: Any) -> StoredTensor:
    """The tensor that is described: itself, as a parameter, or with attributes of Python's."""
    while described.callee != REBUILD_TENSOR:
        is_wrapped = described.callee == TENSOR_WITH_ATTRIBUTES  # (function, type, its arguments, attributes)
        described = Built(REBUILD_TENSOR, described.arguments[2]) if is_wrapped else described.arguments[0]
    return stored_tensor(archive, described)


def _locate(file: _File, tensor: torch.Tensor, described: Any, name: str) -> LazyTensor | torch.Tensor:
    if tensor.dtype not in _WEIGHTS or tensor.dim() == 0 or tensor.numel() == 0:
        return tensor
    stored = _stored(file.archive, described)
    first_byte, _ = file.archive.storages[stored.key]
    offset = first_byte + stored.start * tensor.dtype.itemsize
    shape = stored.shape
    if stored.is_contiguous():
        return FileTensor(file.path, name, offset, shape, tensor.dtype)
    if len(shape) != 2 or stored.stride[1] != 1:
        raise UserError(
            f"{file.path}: tensor {name} is stored with strides {stored.stride}; rows must be contiguous: save it again."
        )
    return Strided(FileTensor(file.path, name, offset, (stored.span(),), tensor.dtype), shape, stored.stride[0])


def load_object(path: Path, data: bytes, what: str) -> Any:
    """The object that torch.save wrote as `data`, a part of `path`: tensors, plain values and a few named classes.

    Raises:
        UserError: it is damaged, or asks for a class, function or amount of memory that is not allowed; nothing of it has run.
    """
    if not data.startswith(_ZIP):
        raise UserError(f"{path}: {what} is no archive of torch.save; copy it again.")
    _check_archive(path, io.BytesIO(data), what)
    return _load(path, io.BytesIO(data), what)


def _load_mapped(path: Path) -> tuple[Any, Archive]:
    """`load_object` for a whole file, which is mapped into memory and not read; and the archive's description of it.

    Raises:
        UserError: as there; or it is missing, or no zip, as before torch 1.6.
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
    try:
        return read_archive(Window(stream, 0, stream.seek(0, io.SEEK_END)))
    except pickle.UnpicklingError as error:
        raise UserError(f"{path}: {what} was refused and not run: {error}.") from None
    except (zipfile.BadZipFile, struct.error, NotImplementedError, ValueError, OSError) as error:
        raise UserError(f"{path} is damaged ({str(error)[:200]}); copy it again.") from None


def _load(path: Path, source: Path | BinaryIO, what: str, **options: Any) -> Any:
    try:
        return torch.load(source, map_location="cpu", weights_only=True, **options)
    except pickle.UnpicklingError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: {what} was refused and not run: {_short(reason)}") from None
    except _DAMAGED as error:
        raise UserError(f"{path} is damaged ({_short(str(error))}); copy it again.") from None


def _short(reason: str) -> str:
    """torch's own reason, without its advice to load the file unrestrictedly."""
    reason = reason.split("from a trusted source.")[-1].split("WeightsUnpickler error: ")[-1]
    return " ".join(reason.split("Check the documentation")[0].split(" Please use")[0].split())[:200]
