"""What each dtype is called in the formats that this project reads and writes: one table for all of them.

Importing this imports no torch. Names that one format alone has (safetensors' unsigned numbers and 8-bit floats,
torch's untyped storage) stand with its reader.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Dtype:
    """One dtype.

    Attributes:
        name: torch's, without `torch.`; config.json's torch_dtype and model.json say the same.
        storage: the class that stands for its bytes in an archive of torch.save.
        safetensors: its code in a safetensors header.
        itemsize: bytes of an element.
        precision: what PR calls a run whose weights have it; empty where weights cannot have it.
    """

    name: str
    storage: str
    safetensors: str
    itemsize: int
    precision: str = ""

    @cached_property
    def torch_dtype(self) -> torch.dtype:
        """torch's own object; imports torch."""
        import torch

        return getattr(torch, self.name)


ALL = (
    Dtype("bfloat16", "BFloat16Storage", "BF16", 2, "bf16"),
    Dtype("float16", "HalfStorage", "F16", 2, "fp16"),
    Dtype("float32", "FloatStorage", "F32", 4, "fp32"),
    Dtype("float64", "DoubleStorage", "F64", 8),
    Dtype("uint8", "ByteStorage", "U8", 1),
    Dtype("int8", "CharStorage", "I8", 1),
    Dtype("int16", "ShortStorage", "I16", 2),
    Dtype("int32", "IntStorage", "I32", 4),
    Dtype("int64", "LongStorage", "I64", 8),
    Dtype("bool", "BoolStorage", "BOOL", 1),
)
WEIGHTS = tuple(one for one in ALL if one.precision)  # what a model's weights may have
WEIGHT_NAMES = tuple(one.name for one in WEIGHTS)


def of_name(name: str) -> Dtype:
    """The row that torch calls `name`.

    Raises:
        KeyError: there is none.
    """
    return _BY_NAME[name]


def of_torch(dtype: torch.dtype) -> Dtype:
    """The row of torch's own object.

    Raises:
        KeyError: the table has none, as for complex numbers.
    """
    return _BY_NAME[str(dtype).removeprefix("torch.")]


def of_precision(precision: str) -> Dtype:
    """The row of the weights of a run whose PR is `precision`."""
    return next(one for one in WEIGHTS if one.precision == precision)


_BY_NAME = {one.name: one for one in ALL}
