"""What torch.save wrote (`pytorch_model.bin`, `model_rng.pt`): the structure, with tensors as places in the file.

The file is mapped and loaded by torch's `weights_only` loader, which touches no tensor's bytes; where they lie is read
from the process's own map of memory (Linux), so they can be streamed instead of being paged in.
"""

from __future__ import annotations

import argparse
import errno
import os
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch

from megatron_patch.errors import UserError
from megatron_patch.formats.distcp_metadata import load_mapped
from megatron_patch.formats.lazy import FileTensor, LazyTensor, Strided

DTYPES = (torch.bfloat16, torch.float16, torch.float32)


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
    """What a file is that torch does not take for its zip format."""
    with open(path, "rb") as stream:
        head = stream.read(512)
    if head.startswith(_PICKLE) or head[257:262] == _TAR:
        return f"{path} is in torch's format from before version 1.6; load it with torch and save it again with torch.save."
    return f"{path} is no file that torch.save wrote (it begins with {head[:16]!r}); copy it again."


@dataclass(frozen=True)
class _Mapping:
    start: int
    end: int
    offset: int


def _nothing_skipped(name: str, axes: int) -> bool:
    return False


def read_torch_file(
    path: Path, skipped: Callable[[str, int], bool] = _nothing_skipped, only: str | None = None
) -> Any:
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
            content = load_mapped(path)
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
    mappings = _mappings(path)
    if only is None or not isinstance(content, dict):
        return _lazy(content, path, "", mappings, skipped)
    return {key: _lazy(value, path, only, mappings, skipped) if key == only else value for key, value in content.items()}


def _mappings(path: Path) -> list[_Mapping]:
    """Where this process has mapped `path`.

    Raises:
        UserError: the system does not tell, as only Linux does.
    """
    if not os.path.exists("/proc/self/maps"):
        raise UserError(f"{path}: torch's files are converted on Linux only; save the model as safetensors.")
    inode = os.stat(path).st_ino
    found = []
    with open("/proc/self/maps", encoding="utf-8", errors="replace") as stream:
        for line in stream:
            span, _, offset, _, number = line.split()[:5]
            if int(number) == inode:
                start, end = (int(part, 16) for part in span.split("-"))
                found.append(_Mapping(start, end, int(offset, 16)))
    return found


def _lazy(value: Any, path: Path, name: str, mappings: list[_Mapping], skipped: Callable[[str, int], bool]) -> Any:
    if isinstance(value, torch.Tensor):
        return value if skipped(name, value.dim()) else _locate(value, path, name, mappings)
    if isinstance(value, dict):
        return {
            key: _lazy(item, path, f"{name}.{key}" if name else str(key), mappings, skipped) for key, item in value.items()
        }
    return value


def _locate(tensor: torch.Tensor, path: Path, name: str, mappings: list[_Mapping]) -> LazyTensor | torch.Tensor:
    if tensor.dtype not in DTYPES or tensor.dim() == 0 or tensor.numel() == 0:
        return tensor
    pointer = tensor.data_ptr()
    for mapping in mappings:
        if mapping.start <= pointer < mapping.end:
            offset = mapping.offset + pointer - mapping.start
            break
    else:
        raise UserError(f"{path}: tensor {name} does not lie in the file; load it with torch and save it again.")
    shape = tuple(tensor.shape)
    if tensor.is_contiguous():
        return FileTensor(path, name, offset, shape, tensor.dtype)
    if tensor.dim() != 2 or tensor.stride(1) != 1:
        raise UserError(
            f"{path}: tensor {name} is stored with strides {tensor.stride()}; rows must be contiguous: save it again."
        )
    rows, columns = shape
    span = (rows - 1) * tensor.stride(0) + columns
    return Strided(FileTensor(path, name, offset, (span,), tensor.dtype), (rows, columns), tensor.stride(0))


