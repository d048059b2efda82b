"""Reading where tensors lie in safetensors files, and the header of a file that is about to be streamed.

The format: 8 bytes little-endian length, that many bytes of JSON, the data. The library checks headers; it reads and writes whole
tensors or shards, which conversion must not, so their bytes are read and written here.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from megatron_patch.checkpoint.lazy import FileTensor, LazyTensor, nbytes
from megatron_patch.errors import UserError

_DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_MAX_HEADER = 100 << 20  # the library's own limit


def read_safetensors(path: Path) -> dict[str, FileTensor]:
    """The tensors of one file by name; their bytes are not read.

    The library checks the header when it opens the file: an object of tensors whose bytes are as many as shape and dtype say and
    lie one after the other from the header to the end of the file. So the order of the tensors gives their places, and the
    header is not read a second time.

    Raises:
        UserError: it is not a whole safetensors file, or holds a dtype other than BF16, F16, F32.
    """
    size = path.stat().st_size
    with open(path, "rb") as stream:
        head = stream.read(8)
    length = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
    if not 2 <= length <= min(_MAX_HEADER, size - 8):
        raise UserError(f"{path} has {size} bytes and no whole safetensors header; the file is damaged: copy it again.")
    try:
        with safe_open(path, framework="numpy") as file:
            return _places(path, file, 8 + length, size)
    except SafetensorError as error:
        reason = " ".join(str(error).removeprefix("Error while deserializing header: ").split())[:200]
        found = "is truncated, or longer than its header says" if "not fully covered" in reason else "has a damaged header"
        raise UserError(f"{path} {found} ({reason}); copy it again.") from None


def _places(path: Path, file: Any, start: int, size: int) -> dict[str, FileTensor]:
    """One tensor after the other, from byte `start` to `size`."""
    found: dict[str, FileTensor] = {}
    for name in file.offset_keys():
        part = file.get_slice(name)
        dtype, shape = _DTYPES.get(part.get_dtype()), tuple(part.get_shape())
        if dtype is None:
            allowed = ", ".join(_DTYPES)
            raise UserError(f"{path}: tensor {name} has dtype {part.get_dtype()}; allowed are {allowed}: convert it first.")
        found[name] = FileTensor(path, name, start, shape, dtype)
        start += nbytes(found[name])
    if start != size:
        raise UserError(f"{path} changed while it was read; copy it again.")
    return found


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
