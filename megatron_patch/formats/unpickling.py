"""Pickles read as plain values: nothing is imported, looked up or called.

A pickle is a program for a small stack machine. Here its steps are split by the standard library's `pickletools.genops`, and
the few that torch's files need are carried out on None, bool, int, float, str, bytes, tuple, list and dict. A class or
function becomes a `Name`, what the program wants to make of one becomes a `Built`. The caller makes of them what it knows.

For what torch's own `weights_only` loader does not read (torch_dist's `.metadata`), and for what has to be known before that
loader takes memory (the sizes in a torch.save archive).
"""

from __future__ import annotations

import pickle
import pickletools
from collections.abc import Callable, Container
from dataclasses import dataclass
from typing import Any, NamedTuple

_Step = Callable[["_Machine", Any], None]
MAX_STEPS = 13_000_000  # 180,000 chunks in a .metadata, at 71 steps each
_MAX_TAKING = 5_000_000  # of these, steps that take memory where they have a byte or two; such chunks have 27 each
_MAX_STACK = 100_000  # pickle writes containers a thousand entries at a time
_SMALLEST, _LARGEST = -(1 << 63), (1 << 64) - 1


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
    """`callee(*arguments)`, and the `items` (of an OrderedDict) and the `state` that the pickle then sets.

    None of it has been done. Compared by identity.
    """

    callee: Name
    arguments: tuple[Any, ...]
    state: Any = None
    items: dict[Any, Any] | None = None


class _Mark:
    """Where a run of arguments begins on the stack."""


_MARK = _Mark()
ORDERED_DICT = Name("collections", "OrderedDict")


def read_pickle(data: bytes, allowed: Container[tuple[str, str]]) -> Any:
    """The value that `data` describes. Time and memory are bounded by its length.

    Raises:
        pickle.UnpicklingError: it is damaged, names a class or function that is not `allowed`, or takes a step that no such
            file needs.
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
    """The stack and the memo. A method is a step of the pickle, with its argument."""

    def __init__(self, allowed: Container[tuple[str, str]]) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.allowed = allowed

    def skip(self, argument: Any) -> None:
        """Frames and the protocol's number say nothing about the value."""

    def push(self, argument: Any) -> None:
        if type(argument) is int and not _SMALLEST <= argument <= _LARGEST:
            raise pickle.UnpicklingError("it holds a number of more than 64 bits")
        self.stack.append(argument)

    def memoize(self, argument: int | None) -> None:
        self.memo[len(self.memo) if argument is None else argument] = _value(self.stack[-1])

    def recall(self, argument: int) -> None:
        self.stack.append(self.memo[argument])

    def make_tuple(self, count: int | None) -> None:
        items = self._pop_to_mark() if count is None else [self._pop() for _ in range(count)][::-1]
        self.stack.append(tuple(items))

    def append(self, argument: Any) -> None:
        item = self._pop()
        _exactly(self.stack[-1], list).append(item)

    def append_several(self, argument: Any) -> None:
        items = self._pop_to_mark()
        _exactly(self.stack[-1], list).extend(items)

    def set_item(self, argument: Any) -> None:
        value, key = self._pop(), self._pop()
        _set_items(self.stack[-1], [key, value])

    def set_several(self, argument: Any) -> None:
        items = self._pop_to_mark()
        _set_items(self.stack[-1], items)

    def name(self, argument: str) -> None:
        self._push_name(*argument.split(" ", 1))

    def name_from_stack(self, argument: Any) -> None:
        name, module = _exactly(self._pop(), str), _exactly(self._pop(), str)
        self._push_name(module, name)

    def call(self, argument: Any) -> None:
        arguments, callee = _exactly(self._pop(), tuple), _exactly(self._pop(), Name)
        self.stack.append(Built(callee, arguments))

    def set_state(self, argument: Any) -> None:
        state, built = self._pop(), _exactly(self.stack[-1], Built)
        if built.state is not None:
            raise pickle.UnpicklingError("it sets the state of one object twice")
        built.state = state

    def persistent(self, argument: Any) -> None:
        self.stack.append(Persistent(self._pop()))

    def _push_name(self, module: str, name: str) -> None:
        if (module, name) not in self.allowed:
            raise pickle.UnpicklingError(f"it names {Name(module, name)}, which no checkpoint needs; it was refused and not run")
        self.stack.append(Name(module, name))

    def _pop(self) -> Any:
        return _value(self.stack.pop())

    def _pop_to_mark(self) -> list[Any]:
        at = len(self.stack) - 1
        while at >= 0 and self.stack[at] is not _MARK:
            at -= 1
        if at < 0:
            raise pickle.UnpicklingError("it ends a group that was not begun")
        items = self.stack[at + 1 :]
        del self.stack[at:]
        return items

    def result(self) -> Any:
        value = self._pop()
        if self.stack:
            raise pickle.UnpicklingError("it leaves more than one value")
        return value


_TAKING = frozenset(
    ("EMPTY_LIST", "EMPTY_DICT", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "MEMOIZE", "BINPUT", "LONG_BINPUT", "REDUCE", "NEWOBJ")
)


def _constant(make: Callable[[], Any]) -> _Step:
    return lambda machine, argument: machine.stack.append(make())


# What pickle writes in protocols 2 to 5 for plain values, dataclasses and torch's tensors.
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
    if item is _MARK:
        raise pickle.UnpicklingError("it takes the beginning of a group for a value")
    return item


def _exactly(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise pickle.UnpicklingError(f"it has a {type(value).__name__} where a {kind.__name__} belongs")
    return value


def _items_of(target: Any) -> dict[Any, Any]:
    if type(target) is Built and target.callee == ORDERED_DICT:
        if target.items is None:
            target.items = {}
        return target.items
    return _exactly(target, dict)


def _set_items(into: Any, items: list[Any]) -> None:
    """Keys are text, numbers or objects: hashing a tuple that is nested a million times would end the process."""
    if len(items) % 2:
        raise pickle.UnpicklingError("it has a key without a value")
    target = _items_of(into)
    for key, value in zip(items[::2], items[1::2]):
        if type(key) not in (str, int, Built):
            raise pickle.UnpicklingError(f"it has a {type(key).__name__} as a key")
        if key in target:
            raise pickle.UnpicklingError("it has the same key twice")
        target[key] = value
