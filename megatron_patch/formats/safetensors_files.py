"""Where tensors lie in safetensors files, and the header for a file that is about to be streamed.

The format: 8 bytes with a little-endian length, that many bytes of JSON, then the data. The library checks headers. It
reads and writes whole tensors or shards, which would not fit into memory in a conversion, so the bytes are read and
written here.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Sequence
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from megatron_patch.errors import UserError
from megatron_patch.formats.lazy import FileTensor, LazyTensor, nbytes

_DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
# Bytes of one element, for each dtype of the format whose elements are whole bytes.
_ITEM_BYTES = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 8),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 2),
    **dict.fromkeys(("F8_E4M3", "F8_E5M2", "F8_E8M0", "I8", "U8", "BOOL"), 1),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_MAX_HEADER = 100 << 20  # the library's own limit


def read_safetensors(
    path: Path, skipped: Callable[[str, int], bool] = lambda name, axes: False
) -> tuple[dict[str, FileTensor], list[str]]:
    """(tensors of a file by name, names of the tensors that were skipped). No tensor's bytes are read.

    The library checks the header when it opens the file: each tensor has as many bytes as its shape and dtype say, and
    they lie one after the other from the header to the end of the file. So the order of the tensors gives their places,
    and the header need not be read a second time.

    Args:
        skipped: says by name and number of axes which tensors to skip. Those may have any dtype.

    Raises:
        UserError: it is not a whole safetensors file, or it holds a dtype other than BF16, F16, F32.
    """
    size = path.stat().st_size
    with open(path, "rb") as stream:
        head = stream.read(8)
    length = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
    if not 2 <= length <= min(_MAX_HEADER, size - 8):
        raise UserError(f"{path} has {size} bytes and no whole safetensors header; the file is damaged: copy it again.")
    try:
        with safe_open(path, framework="numpy") as file:
            return _places(path, file, 8 + length, size, skipped)
    except SafetensorError as error:
        reason = " ".join(str(error).removeprefix("Error while deserializing header: ").split())[:200]
        found = "is truncated, or longer than its header says" if "not fully covered" in reason else "has a damaged header"
        raise UserError(f"{path} {found} ({reason}); copy it again.") from None


def _places(
    path: Path, file: Any, start: int, size: int, skipped: Callable[[str, int], bool]
) -> tuple[dict[str, FileTensor], list[str]]:
    """As `read_safetensors`: the tensors lie one after the other, from byte `start` to byte `size`."""
    found: dict[str, FileTensor] = {}
    left_out = []
    for name in file.offset_keys():
        part = file.get_slice(name)
        kind, shape = part.get_dtype(), tuple(part.get_shape())
        if kind in _ITEM_BYTES and skipped(name, len(shape)):
            left_out.append(name)
        elif kind in _DTYPES:
            found[name] = FileTensor(path, name, start, shape, _DTYPES[kind])
        else:
            raise UserError(f"{path}: tensor {name} has dtype {kind}; allowed are {', '.join(_DTYPES)}: convert it first.")
        start += prod(shape) * _ITEM_BYTES[kind]
    if start != size:
        raise UserError(f"{path} changed while it was read; copy it again.")
    return found, left_out


def safetensors_header(tensors: Sequence[tuple[str, LazyTensor]]) -> bytes:
    """The first bytes of a file that will hold `tensors`. Their bytes must follow in this order, without gaps."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, tensor in tensors:
        end = offset + nbytes(tensor)
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data then begins at a multiple of 8, as the library writes it
    return struct.pack("<Q", len(text)) + text
