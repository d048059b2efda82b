"""What the calls and names of a checked archive mean, tensors apart: `torch_files` makes those.

What a name means is decided by the tables here, and not by what the process happens to have imported or allowed. Every
call stands in `archive_calls` too, which has checked its arguments.
"""

from __future__ import annotations

import argparse
import pathlib
import pickle
import signal
import types
from collections.abc import Callable
from typing import Any

import numpy
import torch

from megatron_patch.formats import dtypes
from megatron_patch.formats.archive_calls import ARRAYS, DTYPE, ENCODE
from megatron_patch.formats.unpickling import Built, Name

_Inner = Callable[[Any], Any]  # makes what a call holds
# The names that are values themselves: dtypes stand in the recorded arguments of a training run.
_NAMES = {Name("torch", one.name): one.torch_dtype for one in dtypes.ALL}
_NAMES |= {Name("torch", name): getattr(torch, name) for name in ("complex64", "complex128")}
# What making a value raises if a call's arguments are of the right kinds, and mean nothing.
REFUSALS = (TypeError, ValueError, RuntimeError, OverflowError, KeyError)


class Opaque:
    """Stands for an object of which nothing is needed: a member of Megatron's enumerations, an fp8 scale's BytesIO."""


def named_value(value: Name) -> Any:
    """A dtype, by its name.

    Raises:
        pickle.UnpicklingError: it is another name.
    """
    if value not in _NAMES:
        raise pickle.UnpicklingError(f"it names {value}, which no checkpoint needs; it was refused and not run")
    return _NAMES[value]


def called_value(value: Built, inner: _Inner) -> Any:
    """What a call returns that makes no tensor and no dictionary.

    Args:
        inner: makes the values that the call holds.

    Raises:
        pickle.UnpicklingError: it is another call, or its arguments mean nothing.
    """
    make = _CALLS.get(value.callee) or (_opaque if value.callee.module.startswith("megatron.") else None)
    if make is None:
        raise pickle.UnpicklingError(f"it calls {value.callee}, which no checkpoint needs")
    try:
        return make(value, inner)
    except REFUSALS:
        raise pickle.UnpicklingError(f"it calls {value.callee} as no checkpoint does") from None


def _namespace(kind: type) -> Callable[[Built, _Inner], Any]:
    """Makes an object of `kind` whose attributes are the call's state."""

    def make(value: Built, inner: _Inner) -> Any:
        found = kind()
        vars(found).update({} if value.state is None else inner(value.state))  # some names are numbers
        return found

    return make


def _dtype(value: Built, inner: _Inner) -> numpy.dtype[Any]:
    """A dtype of numbers, in the recorded order of bytes."""
    dtype = numpy.dtype(value.arguments[0])
    return dtype if value.state is None else dtype.newbyteorder(value.state[1])


def _array(value: Built, inner: _Inner) -> Any:
    """An array with bytes of its own."""
    _, shape, dtype, is_by_columns, content = value.state
    return numpy.ndarray(shape, inner(dtype), bytearray(inner(content)), order="F" if is_by_columns else "C")


def _layout(value: Built, inner: _Inner) -> torch.layout:
    """The only layout that tensors of checkpoints have."""
    return {("torch.strided",): torch.strided}[value.arguments]


def _opaque(value: Built, inner: _Inner) -> Opaque:
    """An object of which nothing is needed."""
    return Opaque()


def _of(function: Callable[..., Any]) -> Callable[[Built, _Inner], Any]:
    """Calls `function` with the call's arguments."""
    return lambda value, inner: function(*map(inner, value.arguments))


_CALLS: dict[Name, Callable[[Built, _Inner], Any]] = {
    Name("types", "SimpleNamespace"): _namespace(types.SimpleNamespace),
    Name("argparse", "Namespace"): _namespace(argparse.Namespace),
    Name("_io", "BytesIO"): _opaque,
    ENCODE: _of(str.encode),
    **{
        Name(module, kind.__name__): _of(kind)
        for module in ("builtins", "__builtin__")  # torch.save writes the names of Python 2
        for kind in (bytearray, set, complex)
    },
    Name("torch", "Size"): _of(torch.Size),
    Name("torch", "device"): _of(torch.device),
    Name("torch.serialization", "_get_layout"): _layout,
    DTYPE: _dtype,
    **dict.fromkeys(ARRAYS, _array),
    Name("signal", "Signals"): _of(signal.Signals),
    **{Name(module, "PosixPath"): _of(pathlib.PosixPath) for module in ("pathlib", "pathlib._local")},
    **{Name(module, "PurePosixPath"): _of(pathlib.PurePosixPath) for module in ("pathlib", "pathlib._local")},
}
