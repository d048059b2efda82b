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
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, NamedTuple

MAX_STEPS = 5_000_000  # more than 100,000 chunks in a .metadata; a few seconds and 500 MB
_MAX_STACK = 100_000  # pickle writes containers a thousand entries at a time
_SMALLEST, _LARGEST = -(1 << 63), (1 << 64) - 1


class Name(NamedTuple):
    """A class or function that the pickle names."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"[:200]


class Persistent(NamedTuple):
    """What the pickle leaves to its reader to fill in: torch's storages."""

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
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_NUMBERS = ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT")
_TEXTS = ("SHORT_BINUNICODE", "BINUNICODE", "SHORT_BINBYTES", "BINBYTES")
_PUSHED_AS_THEY_ARE = frozenset((*_CONSTANTS, *_NUMBERS, *_TEXTS))
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
ORDERED_DICT = Name("collections", "OrderedDict")


def read_pickle(data: bytes, allowed: Collection[tuple[str, str]]) -> Any:
    """The value that `data` describes. Time and memory are bounded by its length.

    Raises:
        pickle.UnpicklingError: it is damaged, names a class or function that is not `allowed`, or takes a step that no such
            file needs.
    """
    machine = _Machine(allowed)
    try:
        for step, (opcode, argument, _) in enumerate(pickletools.genops(data)):
            if step >= MAX_STEPS:
                raise pickle.UnpicklingError(f"it has more than {MAX_STEPS} steps, which no checkpoint needs")
            machine.take(opcode.name, argument)
        return machine.result()
    except (IndexError, KeyError, ValueError, TypeError, AttributeError, OverflowError) as error:
        raise pickle.UnpicklingError(f"it is no whole pickle ({str(error)[:100]})") from None


class _Machine:
    """The stack and the memo."""

    def __init__(self, allowed: Collection[tuple[str, str]]) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.allowed = allowed

    def take(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name in _PUSHED_AS_THEY_ARE:
            stack.append(_CONSTANTS[name] if name in _CONSTANTS else _small(argument))
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = _value(stack[-1])
        elif name in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = _value(stack[-1])
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        else:
            self._build(name, argument)
        if len(stack) > _MAX_STACK:
            raise pickle.UnpicklingError("it is nested deeper than any checkpoint's")

    def _build(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name == "MARK":
            stack.append(_MARK)
        elif name in _TUPLES:
            stack.append(tuple(self._pop() for _ in range(_TUPLES[name]))[::-1])
        elif name == "TUPLE":
            stack.append(tuple(self._pop_to_mark()))
        elif name in ("EMPTY_TUPLE", "EMPTY_LIST", "EMPTY_DICT"):
            stack.append({"EMPTY_TUPLE": tuple, "EMPTY_LIST": list, "EMPTY_DICT": dict}[name]())
        elif name in ("APPEND", "APPENDS"):
            items = [self._pop()] if name == "APPEND" else self._pop_to_mark()
            _exactly(stack[-1], list).extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = [self._pop(), self._pop()][::-1] if name == "SETITEM" else self._pop_to_mark()
            _set_items(_items_of(stack[-1]), items)
        else:
            self._name_or_call(name, argument)

    def _name_or_call(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name == "GLOBAL":
            module, _, attribute = argument.partition(" ")
            stack.append(self._named(module, attribute))
        elif name == "STACK_GLOBAL":
            attribute, module = _exactly(self._pop(), str), _exactly(self._pop(), str)
            stack.append(self._named(module, attribute))
        elif name in ("REDUCE", "NEWOBJ"):
            arguments, callee = _exactly(self._pop(), tuple), _exactly(self._pop(), Name)
            stack.append(Built(callee, arguments))
        elif name == "BUILD":
            state, built = self._pop(), _exactly(stack[-1], Built)
            if built.state is not None:
                raise pickle.UnpicklingError("it sets the state of one object twice")
            built.state = state
        elif name == "BINPERSID":
            stack.append(Persistent(self._pop()))
        elif name not in ("PROTO", "FRAME", "STOP"):
            raise pickle.UnpicklingError(f"it takes the step {name}, which no checkpoint needs")

    def _named(self, module: str, name: str) -> Name:
        if (module, name) not in self.allowed:
            raise pickle.UnpicklingError(
                f"it names {Name(module, name)}, which no checkpoint needs; it was refused and not run"
            )
        return Name(module, name)

    def _pop(self) -> Any:
        return _value(self.stack.pop())

    def _pop_to_mark(self) -> list[Any]:
        at = len(self.stack) - 1
        while self.stack[at] is not _MARK:
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


def _small(value: Any) -> Any:
    if isinstance(value, int) and not _SMALLEST <= value <= _LARGEST:
        raise pickle.UnpicklingError("it holds a number of more than 64 bits")
    return value


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


def _set_items(target: dict[Any, Any], items: list[Any]) -> None:
    """Keys are text, numbers or objects: hashing a tuple that is nested a million times would end the process."""
    if len(items) % 2:
        raise pickle.UnpicklingError("it has a key without a value")
    for key, value in zip(items[::2], items[1::2]):
        if type(key) not in (str, int, Built):
            raise pickle.UnpicklingError(f"it has a {type(key).__name__} as a key")
        if key in target:
            raise pickle.UnpicklingError("it has the same key twice")
        target[key] = value
