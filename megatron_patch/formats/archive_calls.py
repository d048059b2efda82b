"""The calls that a torch.save archive may ask for. None of them can take more memory than its arguments have bytes.

torch's `weights_only` loader checks which functions are named, and not their arguments. It would call `bytearray(1 <<
40)`.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable
from math import prod
from typing import Any

from megatron_patch.formats.unpickling import ORDERED_DICT, Built, Name

REBUILD_TENSOR = Name("torch._utils", "_rebuild_tensor_v2")
# How torch writes a tensor that has Python attributes. Megatron's optimizer sets some.
TENSOR_WITH_ATTRIBUTES = Name("torch._tensor", "_rebuild_from_type_v2")


def check_call(value: Built) -> None:
    """Check that `value` is one of the calls below, with arguments as torch, numpy and pickle write them.

    Raises:
        pickle.UnpicklingError: it is another call, or one with other arguments.
    """
    check = _CALLS.get(value.callee) or (_of_megatron if value.callee.module.startswith("megatron.") else None)
    if check is None:
        raise pickle.UnpicklingError(f"it calls {value.callee}, which no checkpoint needs")
    if not check(value):
        raise pickle.UnpicklingError(f"it calls {value.callee} as no checkpoint does")


def is_count(value: Any) -> bool:
    """Whether `value` is an int from 0 on. A bool is not."""
    return type(value) is int and value >= 0


def are_counts(values: Any) -> bool:
    """Whether `values` is a tuple of up to 16 such numbers, as shapes and strides are."""
    return type(values) is tuple and len(values) <= 16 and all(map(is_count, values))


def _plain(value: Built) -> bool:
    """Text and numbers only, and no state. A state would be set on an enumeration's member, for the whole process."""
    return value.state is None and all(type(item) in (str, int, float, bool, type(None)) for item in value.arguments)


def _new(value: Built) -> bool:
    """A new object without arguments, whose state, a dict or a tuple, is set afterwards."""
    return value.arguments == () and (value.state is None or type(value.state) in (dict, tuple))


def _of_megatron(value: Built) -> bool:
    """A class of Megatron's: an enumeration's member, or an object with a state."""
    return _plain(value) or _new(value)


def _ordered_dict(value: Built) -> bool:
    """An OrderedDict with the state `_metadata` of torch's modules, or none. A state `items` would hide its entries."""
    return value.arguments == () and (value.state is None or type(value.state) is dict and set(value.state) <= {"_metadata"})


def _encode(value: Built) -> bool:
    """`_codecs.encode(text, "latin1")`. Pickle's protocol 2 writes bytes as this call."""
    return value.state is None and all(type(item) is str for item in value.arguments)


def _bytearray(value: Built) -> bool:
    """A bytearray of text or bytes. Of a number n it would make n zeros."""
    return value.state is None and all(type(item) is str or _is_call(item, _ENCODE) for item in value.arguments)


def _is_call(value: Any, name: Name) -> bool:
    """Whether `value` is a call of `name`."""
    return type(value) is Built and value.callee == name


def _dtype(value: Built) -> bool:
    """A dtype of numbers with the state that numpy writes. Another one can make numpy take bytes for pointers."""
    is_number = bool(value.arguments) and type(value.arguments[0]) is str and _NUMBER.fullmatch(value.arguments[0])
    state = value.state
    return bool(is_number) and (state is None or type(state) is tuple and (state[:1], state[2:]) == ((3,), _DTYPE_STATE))


def _array(value: Built) -> bool:
    """`_reconstruct(ndarray, (0,), b"b")`, whose state has a shape and exactly as many bytes as that shape needs."""
    state = value.state
    if value.arguments[1:2] != ((0,),) or type(state) is not tuple or len(state) != 5:
        return False
    _, shape, dtype, _, content = state
    if not (are_counts(shape) and _is_call(dtype, _DTYPE) and _is_call(content, _ENCODE)):
        return False
    return len(content.arguments[0]) == prod(shape) * int(dtype.arguments[0][1:])


def _with_attributes(value: Built) -> bool:
    """(function, type, the function's arguments, attributes), for a plain tensor and no other type."""
    plain = type(value.arguments) is tuple and len(value.arguments) == 4 and value.state is None
    return plain and value.arguments[:2] == (REBUILD_TENSOR, Name("torch", "Tensor")) and type(value.arguments[3]) is dict


def _anything(value: Built) -> bool:
    """Any arguments, and no state."""
    return value.state is None


_ENCODE, _DTYPE = Name("_codecs", "encode"), Name("numpy", "dtype")
_NUMBER = re.compile(r"[iufb][1248]")
_DTYPE_STATE = (None, None, None, -1, -1, 0)
_NUMPY = [Name(f"numpy.{core}.multiarray", "_reconstruct") for core in ("core", "_core")]
_CALLS: dict[Name, Callable[[Built], bool]] = {
    REBUILD_TENSOR: _anything,  # torch_archive.stored_tensor checks its arguments
    Name("torch._utils", "_rebuild_parameter"): _anything,
    TENSOR_WITH_ATTRIBUTES: _with_attributes,
    ORDERED_DICT: _ordered_dict,
    Name("types", "SimpleNamespace"): _new,
    Name("argparse", "Namespace"): _new,
    Name("_io", "BytesIO"): _new,
    _ENCODE: _encode,
    **{
        Name(module, name): check
        for module in ("builtins", "__builtin__")  # torch.save writes the names of Python 2
        for name, check in (("bytearray", _bytearray), ("set", _anything), ("complex", _plain))
    },
    Name("torch", "Size"): _anything,
    Name("torch", "device"): _plain,
    Name("torch.serialization", "_get_layout"): _plain,
    _DTYPE: _dtype,
    **dict.fromkeys(_NUMPY, _array),
    Name("signal", "Signals"): _plain,
    **{Name(module, f"{kind}Path"): _plain for module in ("pathlib", "pathlib._local") for kind in ("Posix", "PurePosix")},
}
