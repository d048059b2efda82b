"""The objects that a checked archive describes, made of the very values that were checked.

torch.load would read the file again, with a zip reader and an unpickler of its own, and those two could find something
else in it. Here nothing is read a second time. What a name means is decided by the table below, and not by what the
process happens to have imported or allowed. Every call in it stands in `archive_calls` too, which has checked its
arguments.
"""

from __future__ import annotations

import argparse
import mmap
import pathlib
import pickle
import signal
import types
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy
import torch

from megatron_patch.formats import dtypes
from megatron_patch.formats.archive_calls import ARRAYS, DTYPE, ENCODE, PARAMETER, REBUILD_TENSOR, TENSOR_WITH_ATTRIBUTES
from megatron_patch.formats.torch_archive import Archive, StoredTensor, tensor_inside
from megatron_patch.formats.unpickling import ORDERED_DICT, Built, Name, Persistent

_DTYPES = {one.storage: one.torch_dtype for one in dtypes.ALL}
# The names that are values themselves: dtypes stand in the recorded arguments of a training run.
_NAMES = {Name("torch", str(one).removeprefix("torch.")): one for one in (*_DTYPES.values(), torch.complex64, torch.complex128)}
# What making a value raises if a call's arguments are of the right kinds, and mean nothing.
_REFUSALS = (TypeError, ValueError, RuntimeError, OverflowError, KeyError)


class Opaque:
    """Stands for an object of which nothing is needed: a member of Megatron's enumerations, an fp8 scale's BytesIO."""


def made(archive: Archive, content: bytearray | mmap.mmap) -> Any:
    """The object that `archive` describes. Its tensors are views of `content`.

    A parameter becomes its tensor. Attributes, hooks, and whether a tensor is trained, are left out.

    Args:
        archive: what `read_archive` found in the window that `content` is.
        content: all bytes of that window, in memory or mapped. Tensors that are written to write to it.

    Raises:
        pickle.UnpicklingError: a name or a call means nothing.
    """
    return _Maker(archive, content).value(archive.value)


class _Maker:
    """Makes each value once, as often as it is referred to. What refers to itself is refused before."""

    def __init__(self, archive: Archive, content: bytearray | mmap.mmap) -> None:
        self.archive, self.content = archive, content
        self.done: dict[int, Any] = {}  # by the id of the value in `archive`, which keeps it alive

    def value(self, value: Any) -> Any:
        """What `value` describes; a plain one is itself."""
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

    def name(self, value: Name) -> Any:
        """A dtype, by its name."""
        if value not in _NAMES:
            raise pickle.UnpicklingError(f"it names {value}, which no checkpoint needs; it was refused and not run")
        return _NAMES[value]

    def storage(self, value: Persistent) -> Any:
        """Nothing: a storage by itself is no value."""
        raise pickle.UnpicklingError("it holds something else than a tensor")

    def call(self, value: Built) -> Any:
        """What the call would return."""
        make = _CALLS.get(value.callee) or (_opaque if value.callee.module.startswith("megatron.") else None)
        if make is None:
            raise pickle.UnpicklingError(f"it calls {value.callee}, which no checkpoint needs")
        try:
            return make(self, value)
        except _REFUSALS:
            raise pickle.UnpicklingError(f"it calls {value.callee} as no checkpoint does") from None

    def tensor(self, value: Built) -> torch.Tensor:
        """A view of the bytes in which the tensor lies."""
        stored = tensor_inside(self.archive, value)
        return self.storage_of(stored).as_strided(stored.shape, stored.stride, stored.start)

    def storage_of(self, stored: StoredTensor) -> torch.Tensor:
        """All elements of the tensor's storage."""
        dtype = _DTYPES[stored.storage]
        offset, size = self.archive.storages[stored.key]
        if not size:  # torch.frombuffer refuses it
            return torch.empty(0, dtype=dtype)
        return torch.frombuffer(self.content, dtype=dtype, count=size // dtype.itemsize, offset=offset)


def _ordered_dict(maker: _Maker, value: Built) -> OrderedDict[Any, Any]:
    """The entries, without the versions of modules that torch keeps beside them."""
    return OrderedDict(maker.mapping(value.items or {}))


def _namespace(kind: type) -> Callable[[_Maker, Built], Any]:
    """Makes an object of `kind` whose attributes are the call's state."""

    def make(maker: _Maker, value: Built) -> Any:
        found = kind()
        vars(found).update({} if value.state is None else maker.value(value.state))  # some names are numbers
        return found

    return make


def _dtype(maker: _Maker, value: Built) -> numpy.dtype[Any]:
    """A dtype of numbers, in the recorded order of bytes."""
    dtype = numpy.dtype(value.arguments[0])
    return dtype if value.state is None else dtype.newbyteorder(value.state[1])


def _array(maker: _Maker, value: Built) -> Any:
    """An array with bytes of its own."""
    _, shape, dtype, is_by_columns, content = value.state
    return numpy.ndarray(shape, maker.value(dtype), bytearray(maker.value(content)), order="F" if is_by_columns else "C")


def _layout(maker: _Maker, value: Built) -> torch.layout:
    """The only layout that tensors of checkpoints have."""
    return {("torch.strided",): torch.strided}[value.arguments]


def _opaque(maker: _Maker, value: Built) -> Opaque:
    """An object of which nothing is needed."""
    return Opaque()


def _of(function: Callable[..., Any]) -> Callable[[_Maker, Built], Any]:
    """Calls `function` with the call's arguments."""
    return lambda maker, value: function(*map(maker.value, value.arguments))


_CALLS: dict[Name, Callable[[_Maker, Built], Any]] = {
    REBUILD_TENSOR: _Maker.tensor,
    PARAMETER: _Maker.tensor,
    TENSOR_WITH_ATTRIBUTES: _Maker.tensor,
    ORDERED_DICT: _ordered_dict,
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
_KINDS: dict[type, Callable[[_Maker, Any], Any]] = {
    tuple: lambda maker, value: tuple(map(maker.value, value)),
    list: lambda maker, value: list(map(maker.value, value)),
    dict: _Maker.mapping,
    Name: _Maker.name,
    Persistent: _Maker.storage,
    Built: _Maker.call,
}
