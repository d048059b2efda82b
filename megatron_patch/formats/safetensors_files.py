"""Where tensors lie in safetensors files.

The format: 8 bytes with a little-endian length, that many bytes of JSON, then the data. The library checks headers. It
reads whole tensors, which would not fit into memory in a conversion, so it is asked for their places alone. `streaming`
writes such files.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from megatron_patch.errors import UserError
from megatron_patch.formats import dtypes
from megatron_patch.formats.lazy import FileTensor

_DTYPES = {one.safetensors: one.torch_dtype for one in dtypes.WEIGHTS}
# Bytes of one element, for each dtype of the format whose elements are whole bytes.
_ITEM_BYTES = {one.safetensors: one.itemsize for one in dtypes.ALL}
_ITEM_BYTES |= {"U64": 8, "C64": 8, "U32": 4, "U16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1}
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
