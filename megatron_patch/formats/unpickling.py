"""Pickles read as plain values: nothing is imported, looked up or called.

A pickle is a program for a small stack machine. The standard library's `pickletools.genops` splits it into steps, and
this module carries out the few steps that torch's files need, on None, bool, int, float, str, bytes, tuple, list and
dict. A class or function becomes a `Name`. A call of one becomes a `Built`, and its caller decides what to make of
that.

Two files need it: torch_dist's `.metadata`, which torch's `weights_only` loader does not read, and torch.save's
archives, whose sizes must be known before that loader takes memory.
"""

from __future__ import annotations

import pickle
import pickletools
from collections.abc import Callable, Container
from dataclasses import dataclass
from typing import Any, NamedTuple

_Step = Callable[["_Machine", Any], None]
MAX_STEPS = 13_000_000  # a .metadata of 180,000 chunks has that many, 71 for each
_MAX_TAKING = 5_000_000  # of the steps in `_TAKING`; the same .metadata has 27 of them for each chunk
_MAX_STACK = 100_000  # values; pickle writes containers a thousand entries at a time
_SMALLEST, _LARGEST = -(1 << 63), (1 << 64) - 1  # of whole numbers


class Name(NamedTuple):
    """A class or function that the pickle names."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"[:200]


class Persistent(NamedTuple):
    """An object that the pickle names and its reader must supply (persistent id): torch's storages."""

    identity: Any


@dataclass(eq=False, slots=True)
class Built:
    """A call that the pickle asks for, `callee(*arguments)`, and what it then sets on the result. Nothing was called.

    Two of them are equal only if they are the same object.
    """

    callee: Name
    arguments: tuple[Any, ...]
    state: Any = None
    items: dict[Any, Any] | None = None  # of an OrderedDict


class _Mark:
    """What the pickle puts on the stack where a group of values begins."""


_MARK = _Mark()
ORDERED_DICT = Name("collections", "OrderedDict")


def read_pickle(data: bytes, allowed: Container[tuple[str, str]]) -> Any:
    """The value that `data` describes. Time and memory grow with the length of `data` alone.

    Args:
        data: the pickle.
        allowed: (module, name) of the classes and functions that it may name.

    Raises:
        pickle.UnpicklingError: it is damaged, names a class or function that is not `allowed`, or takes a step that no
            such file needs.
    """
    machine, taking = _Machine(allowed), 0
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(data)):
            taking += opcode.name in _TAKING
            if count >= MAX_STEPS or taking > _MAX_TAKING or len(machine.stack) > _MAX_STACK:
                raise pickle.UnpicklingError("it has more steps, or is nested deeper, than any checkpoint's")
            step = _STEPS.get(opcode.name)
            if step is None:
                raise pickle.UnpicklingError(f"it takes the step {opcode.name}, which no checkpoint needs")
            step(machine, argument)
        return machine.result()
    except (IndexError, KeyError, ValueError, TypeError, AttributeError, OverflowError) as error:
        raise pickle.UnpicklingError(f"it is no whole pickle ({str(error)[:100]})") from None


class _Machine:
    """The stack and the memo. Each public method but `result` is a step of the pickle, called with its argument."""

    def __init__(self, allowed: Container[tuple[str, str]]) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.allowed = allowed

    def skip(self, argument: Any) -> None:
        """PROTO, FRAME and STOP: they say nothing about the value."""

    def push(self, argument: Any) -> None:
        """Push a number, a text or bytes."""
        if type(argument) is int and not _SMALLEST <= argument <= _LARGEST:
            raise pickle.UnpicklingError("it holds a number of more than 64 bits")
        self.stack.append(argument)

    def memoize(self, argument: int | None) -> None:
        """Keep the value on top under a number, by default the next one."""
        self.memo[len(self.memo) if argument is None else argument] = _value(self.stack[-1])

    def recall(self, argument: int) -> None:
        """Push what was kept under a number."""
        self.stack.append(self.memo[argument])

    def make_tuple(self, count: int | None) -> None:
        """A tuple of the last `count` values, or of the group on top."""
        items = self._pop_to_mark() if count is None else [self._pop() for _ in range(count)][::-1]
        self.stack.append(tuple(items))

    def append(self, argument: Any) -> None:
        """Append the value on top to the list below it."""
        item = self._pop()
        _exactly(self.stack[-1], list).append(item)

    def append_several(self, argument: Any) -> None:
        """Append the group on top to the list below it."""
        items = self._pop_to_mark()
        _exactly(self.stack[-1], list).extend(items)

    def set_item(self, argument: Any) -> None:
        """Put the key and the value on top into the dictionary below them."""
        value, key = self._pop(), self._pop()
        _set_items(self.stack[-1], [key, value])

    def set_several(self, argument: Any) -> None:
        """Put the group on top, keys and values in turn, into the dictionary below it."""
        items = self._pop_to_mark()
        _set_items(self.stack[-1], items)

    def name(self, argument: str) -> None:
        """Push a class or function, named by the step as `module name`."""
        self._push_name(*argument.split(" ", 1))

    def name_from_stack(self, argument: Any) -> None:
        """Push a class or function, whose module and name are on top."""
        name, module = _exactly(self._pop(), str), _exactly(self._pop(), str)
        self._push_name(module, name)

    def call(self, argument: Any) -> None:
        """Push a `Built` in the place of what pickle would call; nothing is called."""
        arguments, callee = _exactly(self._pop(), tuple), _exactly(self._pop(), Name)
        self.stack.append(Built(callee, arguments))

    def set_state(self, argument: Any) -> None:
        """Note the state on top in the `Built` below it."""
        state, built = self._pop(), _exactly(self.stack[-1], Built)
        if built.state is not None:
            raise pickle.UnpicklingError("it sets the state of one object twice")
        built.state = state

    def persistent(self, argument: Any) -> None:
        """Turn the value on top into a `Persistent`."""
        self.stack.append(Persistent(self._pop()))

    def _push_name(self, module: str, name: str) -> None:
        """Push a `Name`, if it is allowed."""
        if (module, name) not in self.allowed:
            raise pickle.UnpicklingError(f"it names {Name(module, name)}, which no checkpoint needs; it was refused and not run")
        self.stack.append(Name(module, name))

    def _pop(self) -> Any:
        """Take the value on top."""
        return _value(self.stack.pop())

    def _pop_to_mark(self) -> list[Any]:
        """Take the group on top: all values above the last mark, and the mark."""
        at = len(self.stack) - 1
        while at >= 0 and self.stack[at] is not _MARK:
            at -= 1
        if at < 0:
            raise pickle.UnpicklingError("it ends a group that was not begun")
        items = self.stack[at + 1 :]
        del self.stack[at:]
        return items

    def result(self) -> Any:
        """The one value that is left at the end."""
        value = self._pop()
        if self.stack:
            raise pickle.UnpicklingError("it leaves more than one value")
        return value


# Steps of a few bytes that take more memory than they have bytes: an empty container, an entry of the memo, a call.
_TAKING = frozenset(
    ("EMPTY_LIST", "EMPTY_DICT", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "MEMOIZE", "BINPUT", "LONG_BINPUT", "REDUCE", "NEWOBJ")
)


def _constant(make: Callable[[], Any]) -> _Step:
    """A step that pushes what `make` returns, a new object each time."""
    return lambda machine, argument: machine.stack.append(make())


# The steps that pickle's protocols 2 to 5 take for plain values, dataclasses and torch's tensors.
_STEPS: dict[str, _Step] = {
    **dict.fromkeys(("PROTO", "FRAME", "STOP"), _Machine.skip),
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"), _Machine.push),
    **dict.fromkeys(("SHORT_BINUNICODE", "BINUNICODE", "SHORT_BINBYTES", "BINBYTES"), _Machine.push),
    "NONE": _constant(lambda: None),
    "NEWTRUE": _constant(lambda: True),
    "NEWFALSE": _constant(lambda: False),
    "MARK": _constant(lambda: _MARK),
    "EMPTY_TUPLE": _constant(tuple),
    "EMPTY_LIST": _constant(list),
    "EMPTY_DICT": _constant(dict),
    **dict.fromkeys(("MEMOIZE", "BINPUT", "LONG_BINPUT"), _Machine.memoize),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), _Machine.recall),
    "TUPLE1": lambda machine, argument: machine.make_tuple(1),
    "TUPLE2": lambda machine, argument: machine.make_tuple(2),
    "TUPLE3": lambda machine, argument: machine.make_tuple(3),
    "TUPLE": _Machine.make_tuple,
    "APPEND": _Machine.append,
    "APPENDS": _Machine.append_several,
    "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_several,
    "GLOBAL": _Machine.name,
    "STACK_GLOBAL": _Machine.name_from_stack,
    "REDUCE": _Machine.call,
    "NEWOBJ": _Machine.call,
    "BUILD": _Machine.set_state,
    "BINPERSID": _Machine.persistent,
}


def _value(item: Any) -> Any:
    """`item`, which must not be a mark."""
    if item is _MARK:
        raise pickle.UnpicklingError("it takes the beginning of a group for a value")
    return item


def _exactly(value: Any, kind: type) -> Any:
    """`value`, which must be of exactly this type, subclasses excluded."""
    if type(value) is not kind:
        raise pickle.UnpicklingError(f"it has a {type(value).__name__} where a {kind.__name__} belongs")
    return value


def _items_of(target: Any) -> dict[Any, Any]:
    """The dictionary that takes the entries of `target`, a dict or an OrderedDict that is being built."""
    if type(target) is Built and target.callee == ORDERED_DICT:
        if target.items is None:
            target.items = {}
        return target.items
    return _exactly(target, dict)


def _set_items(into: Any, items: list[Any]) -> None:
    """Put `items`, keys and values in turn, into a dictionary.

    Keys are text, numbers or objects. A tuple is refused: hashing one that is nested a million times would end the
    process.
    """
    if len(items) % 2:
        raise pickle.UnpicklingError("it has a key without a value")
    target = _items_of(into)
    for key, value in zip(items[::2], items[1::2]):
        if type(key) not in (str, int, Built):
            raise pickle.UnpicklingError(f"it has a {type(key).__name__} as a key")
        if key in target:
            raise pickle.UnpicklingError("it has the same key twice")
        target[key] = value
