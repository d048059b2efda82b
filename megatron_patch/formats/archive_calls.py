"""The calls that a torch.save archive may ask for. None takes more memory or time than its arguments have bytes.

Which functions are named is half of the check: their arguments are the other. `bytearray(1 << 40)` takes a terabyte,
and Python's codec "punycode" takes longer than the square of a text's length. `archive_values` has what such a call
returns.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable
from math import prod
from typing import Any

from megatron_patch.formats.unpickling import ORDERED_DICT, Built, Name

REBUILD_TENSOR = Name("torch._utils", "_rebuild_tensor_v2")
PARAMETER = Name("torch._utils", "_rebuild_parameter")
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
    return value.state is None and _is_latin(value.arguments)


def _is_latin(arguments: Any) -> bool:
    """Whether these are a text and the encoding of one byte a character, the only one that pickle writes."""
    return len(arguments) == 2 and type(arguments[0]) is str and arguments[1] in ("latin1", "latin-1")


def _bytearray(value: Built) -> bool:
    """A bytearray of nothing, of bytes or of a text with its encoding. Of a number n it would make n zeros."""
    is_bytes = len(value.arguments) == 1 and (type(value.arguments[0]) is bytes or _is_call(value.arguments[0], ENCODE))
    return value.state is None and (not value.arguments or is_bytes or _is_latin(value.arguments))


def _set(value: Built) -> bool:
    """A set of plain values. Tuples are refused: it is known how to make many with one hash, which takes the square."""
    kinds = (str, bytes, int, float, bool, type(None))
    items = value.arguments[0] if len(value.arguments) == 1 else None
    return value.state is None and type(items) is list and all(type(item) in kinds for item in items)


def _complex(value: Built) -> bool:
    """A complex number of two others. A text would be parsed."""
    return value.state is None and len(value.arguments) == 2 and all(type(part) in (int, float) for part in value.arguments)


def _size(value: Built) -> bool:
    """torch.Size of a tuple of numbers."""
    return value.state is None and len(value.arguments) == 1 and are_counts(value.arguments[0])


def _parameter(value: Built) -> bool:
    """(tensor, whether it is trained, hooks)."""
    inner = value.arguments[0] if value.arguments else None
    return value.state is None and (_is_call(inner, REBUILD_TENSOR) or _is_call(inner, TENSOR_WITH_ATTRIBUTES))


def _is_call(value: Any, name: Name) -> bool:
    """Whether `value` is a call of `name`."""
    return type(value) is Built and value.callee == name


def _dtype(value: Built) -> bool:
    """A dtype of numbers with the state that numpy writes. Another one can make numpy take bytes for pointers."""
    is_number = bool(value.arguments) and type(value.arguments[0]) is str and _NUMBER.fullmatch(value.arguments[0])
    state = value.state
    is_plain = (
        type(state) is tuple and len(state) == 8 and (state[0], state[2:]) == (3, _DTYPE_STATE) and state[1] in ("<", ">", "|")
    )
    return bool(is_number) and (state is None or is_plain)


def _array(value: Built) -> bool:
    """`_reconstruct(ndarray, (0,), b"b")`, whose state has a shape and exactly as many bytes as that shape needs."""
    state = value.state
    if value.arguments[1:2] != ((0,),) or type(state) is not tuple or len(state) != 5:
        return False
    _, shape, dtype, _, content = state
    if not (are_counts(shape) and _is_call(dtype, DTYPE) and _is_call(content, ENCODE)):
        return False
    return len(content.arguments[0]) == prod(shape) * int(dtype.arguments[0][1:])


def _with_attributes(value: Built) -> bool:
    """(function, type, the function's arguments, attributes), for a plain tensor and no other type."""
    if len(value.arguments) != 4 or value.state is not None:
        return False
    function, kind, arguments, attributes = value.arguments
    is_plain = (function, kind) == (REBUILD_TENSOR, Name("torch", "Tensor"))
    return is_plain and type(arguments) is tuple and type(attributes) is dict


def _anything(value: Built) -> bool:
    """Any arguments, and no state."""
    return value.state is None


ENCODE, DTYPE = Name("_codecs", "encode"), Name("numpy", "dtype")
_NUMBER = re.compile(r"[iufb][1248]")
_DTYPE_STATE = (None, None, None, -1, -1, 0)
ARRAYS = [Name(f"numpy.{core}.multiarray", "_reconstruct") for core in ("core", "_core")]
_CALLS: dict[Name, Callable[[Built], bool]] = {
    REBUILD_TENSOR: _anything,  # torch_archive.stored_tensor checks its arguments
    PARAMETER: _parameter,
    TENSOR_WITH_ATTRIBUTES: _with_attributes,
    ORDERED_DICT: _ordered_dict,
    Name("types", "SimpleNamespace"): _new,
    Name("argparse", "Namespace"): _new,
    Name("_io", "BytesIO"): _new,
    ENCODE: _encode,
    **{
        Name(module, name): check
        for module in ("builtins", "__builtin__")  # torch.save writes the names of Python 2
        for name, check in (("bytearray", _bytearray), ("set", _set), ("complex", _complex))
    },
    Name("torch", "Size"): _size,
    Name("torch", "device"): _plain,
    Name("torch.serialization", "_get_layout"): _plain,
    DTYPE: _dtype,
    **dict.fromkeys(ARRAYS, _array),
    Name("signal", "Signals"): _plain,
    **{Name(module, f"{kind}Path"): _plain for module in ("pathlib", "pathlib._local") for kind in ("Posix", "PurePosix")},
}
