"""Reading where tensors lie in safetensors files, and the header of a file that is about to be streamed.

The format: 8 bytes little-endian length, that many bytes of JSON, the data. The library writes and reads whole shards or
maps them into memory, which conversion must not; its header is small enough to be read and written here.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Sequence
from math import prod
from pathlib import Path
from typing import Any

import torch

from megatron_patch.checkpoint.lazy import FileTensor, LazyTensor, nbytes

_DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_MAX_HEADER = 100 << 20  # the library's own limit


def read_safetensors(
    path: Path, skipped: Callable[[str, int], bool] = lambda name, axes: False
) -> tuple[dict[str, FileTensor], list[str]]:
    """The tensors of one file by name, and the names of those for which `skipped` (name, axes) is true; no bytes are read.

    What is skipped may have any dtype.

    Raises:
        ValueError: it is not a whole safetensors file, or holds a dtype other than BF16, F16, F32.
    """
    size = path.stat().st_size
    with open(path, "rb") as stream:
        head = stream.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
        if not 2 <= length <= min(_MAX_HEADER, size - 8):
            raise ValueError(f"{path} has {size} bytes and no whole safetensors header; the file is damaged: copy it again.")
        text = stream.read(length)
    try:
        header = json.loads(text)
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} has no readable safetensors header ({error}); the file is damaged.") from None
    header.pop("__metadata__", None)
    left_out = [name for name, entry in header.items() if skipped(name, len(entry["shape"]))]
    return {
        name: _tensor(path, name, entry, 8 + length, size) for name, entry in header.items() if name not in set(left_out)
    }, left_out


def _tensor(path: Path, name: str, entry: dict[str, Any], data: int, size: int) -> FileTensor:
    dtype = _DTYPES.get(entry["dtype"])
    if dtype is None:
        allowed = ", ".join(_DTYPES)
        raise ValueError(f"{path}: tensor {name} has dtype {entry['dtype']}; allowed are {allowed}: convert it first.")
    shape, (start, end) = tuple(entry["shape"]), entry["data_offsets"]
    if end - start != prod(shape) * dtype.itemsize:
        raise ValueError(f"{path}: tensor {name} has {end - start} bytes for shape {list(shape)}; the header is damaged.")
    if data + end > size:
        raise ValueError(
            f"{path} is truncated: tensor {name} ends at byte {data + end}, the file at {size}; copy it again."
        )
    return FileTensor(path, name, data + start, shape, dtype)


def safetensors_header(tensors: Sequence[tuple[str, LazyTensor]]) -> bytes:
    """The start of a file that holds `tensors` one after the other; their bytes follow it without gaps."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, tensor in tensors:
        end = offset + nbytes(tensor)
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors start at a multiple of 8
    return struct.pack("<Q", len(text)) + text
