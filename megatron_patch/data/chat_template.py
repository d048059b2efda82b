"""A folder's Jinja chat template, run so that it can neither reach Python's objects nor take all time and memory.

Jinja's immutable sandbox keeps a template from Python's objects. It bounds `range` and nothing else. Two nested loops
of 100,000 steps, a text that doubles forty times, `'x' * 10**9` or a macro that calls itself twice would run for hours
or take all memory. So this module adds bounds:

- Every step of a loop and every call counts against a budget, and a clock runs.
- A text that an operator, a filter, a method or a block makes has at most `_MOST_TEXT` characters, and a list as many
  items. What could make more in one go (`*`, `**`, `center`, `replace`, `join`, `format`, …) is computed in advance, or
  is not there.
- What is written out is bounded as a whole, also inside blocks and macros.

Real templates stay a hundredfold below all bounds. The bounds grow with the conversation.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.filters import FILTERS
from jinja2.runtime import LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from megatron_patch.errors import UserError
from megatron_patch.formats.json_files import one_line

_MOST_SOURCE = 1 << 16  # characters of a template; LLaMA 3.1's, among the longest, has 4,000
_MOST_STEPS = 200_000  # steps of loops and calls, of one rendering
_MOST_SECONDS = 1.0  # of one rendering; usual are 0.1 ms
_MOST_TEXT = 1 << 20  # characters of a text, items of a list
_MOST_OUTPUT = 1 << 22  # characters written out
_MOST_NUMBER = 10**30
# Filters and methods that make a large text of a small one. No chat template needs them.
_NO_FILTERS = ("batch", "center", "filesizeformat", "format", "pprint", "slice", "urlize", "wordwrap", "xmlattr")
_NO_METHODS = {"center", "expandtabs", "ljust", "rjust", "translate", "zfill"}
# What a template can raise when it meets unexpected values. The fault is the template's or the conversation's.
_FAULTS = (
    TemplateError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    NameError,
    RuntimeError,  # of which RecursionError is one
    TypeError,
    ValueError,
)

# render(turns, add_generation_prompt, **more) → text. The template knows the names in `more` too, such as `tools`.
Render = Callable[..., str]


class _TooMuch(TemplateError):
    """A template met a bound."""


class _Bounded(ImmutableSandboxedEnvironment):
    """The sandbox with the bounds of the module's docstring."""

    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self) -> None:
        # trim_blocks and lstrip_blocks as in transformers, which templates are written for.
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"], finalize=self._written)
        self.filters = {name: self._bounded_filter(function) for name, function in FILTERS.items() if name not in _NO_FILTERS}
        self.filters |= {
            _STEPS: self._steps,
            _VALUE: self._bounded,
            "join": self._join,
            "replace": self._replace,
            "indent": self._indent,
        }
        self.globals = {name: self.globals[name] for name in ("range", "dict", "namespace", "cycler", "joiner")}
        self.globals["raise_exception"] = _raise_exception
        self.begin(0)

    def begin(self, characters: int) -> None:
        """Begin a rendering with a full budget. `characters`: size of the conversation, with which the budget grows."""
        self.steps, self.end = _MOST_STEPS + characters, time.monotonic() + _MOST_SECONDS + characters / 1e6
        self.output, self.most = _MOST_OUTPUT + 4 * characters, _MOST_TEXT + 4 * characters

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        """Jinja's hook for a template's source: parse it, and put the bounds into the parsed template."""
        return _Counted().visit(super()._parse(source, name, filename))

    def _step(self) -> None:
        """Count one step.

        Raises:
            _TooMuch: the budget or the time is used up.
        """
        self.steps -= 1
        if self.steps < 0 or time.monotonic() > self.end:
            raise _TooMuch(f"it takes more than {_MOST_STEPS} steps or {_MOST_SECONDS:g} s")

    def _steps(self, items: Iterable[Any]) -> Iterator[Any]:
        """`items`, each counted as a step. Every loop of a template goes through this."""
        for item in items:
            self._step()
            yield item

    def _written(self, value: Any) -> str:
        """The text of a value that the template writes out, counted."""
        self._step()
        text = value if isinstance(value, str) else str(self._bounded(value))
        self.output -= len(text)
        if self.output < 0:
            raise _TooMuch(f"it writes more than {_MOST_OUTPUT} characters")
        return text

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Jinja's hook for attributes: texts lack the methods that make a large text of a small one."""
        return not (isinstance(obj, (str, bytes)) and attr in _NO_METHODS) and super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> Any:
        """Jinja's hook for `str.format`: refuse a width of four digits, or one that the template computes."""
        wrapped, text = super().wrap_str_format(value), getattr(value, "__self__", None)
        if wrapped is not None and isinstance(text, str) and re.search(r"[0-9]{4}|\{[^{}]*\{", text):
            raise _TooMuch("a text is formatted to a width of thousands, or to one that is reckoned")
        return wrapped

    def call(self, context: Any, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Jinja's hook for every call in a template: count it, and bound what it returns.

        Two methods of texts are bounded before they run, since their result can be much larger than their arguments:
        `replace` and `join`. A recursive loop is a call of the loop with new items, which are counted like those of any
        other loop.
        """
        self._step()
        owner, name = getattr(obj, "__self__", None), getattr(obj, "__name__", "")
        if isinstance(obj, LoopContext) and args:  # of a recursive loop
            args = (self._steps(args[0]), *args[1:])
        if isinstance(owner, str) and name == "replace" and len(args) > 1:
            return self._replace(owner, *args[:3])
        if isinstance(owner, str) and name == "join" and args:
            args = (list(self._items_to_join(owner, args[0])), *args[1:])
        return self._bounded(super().call(context, obj, *args, **kwargs))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Jinja's hook for operators: refuse what would make too much before it is computed, and bound the result."""
        if operator == "**" and isinstance(right, int) and right > 100:
            raise _TooMuch("it reckons with numbers of more than 30 digits")
        if operator == "*":
            self._check_product(left, right)
        if operator == "%" and isinstance(left, str) and re.search("[0-9]{4}|[*]", left):
            raise _TooMuch("a text is formatted to a width of thousands, or to one that is reckoned")
        return self._bounded(super().call_binop(context, operator, left, right))

    def _check_product(self, left: Any, right: Any) -> None:
        """Refuse `'x' * 10**9` before it is computed."""
        for many, times in ((left, right), (right, left)):
            if isinstance(many, (str, list, tuple)) and isinstance(times, int) and len(many) * times > self.most:
                raise self._too_large()

    def _bounded(self, value: Any) -> Any:
        """Return `value` if it is not too large, else raise _TooMuch.

        A nested list counts with everything in it, and an object that stands in it twice counts twice.
        """
        self._step()
        if isinstance(value, str) and len(value) > self.most:
            raise self._too_large()
        if isinstance(value, int) and abs(value) > _MOST_NUMBER:
            raise _TooMuch("it reckons with numbers of more than 30 digits")
        if isinstance(value, (list, tuple, dict)):
            self._size(value, 0)
        return value

    def _size(self, value: Any, before: int, depth: int = 0) -> int:
        """`before` plus the characters and items in `value`. Raises _TooMuch beyond the bound."""
        if depth > 20:
            raise _TooMuch("it makes lists in lists in lists")
        if isinstance(value, (list, tuple, dict)):
            for item in value.values() if isinstance(value, dict) else value:
                before = self._size(item, before, depth + 1)
        before += len(value) if isinstance(value, str) else 1
        if before > self.most:
            raise self._too_large()
        return before

    def _too_large(self) -> _TooMuch:
        """The error for a text or a list beyond the bound."""
        return _TooMuch(f"it makes a text or a list of more than {self.most} characters or items")

    def _bounded_filter(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """One of Jinja's filters with a bounded result. Its arguments are bounded already."""

        def bounded(*args: Any, **kwargs: Any) -> Any:
            return self._bounded(function(*args, **kwargs))

        vars(bounded).update(getattr(function, "__dict__", {}))  # Jinja's marks of what a filter wants to be passed
        return bounded

    def _items_to_join(self, between: str, items: Iterable[Any]) -> Iterator[Any]:
        """The items to be joined, while what they come to stays within the bound."""
        size = 0
        for item in items:
            size += len(item if isinstance(item, str) else str(self._bounded(item))) + len(between)
            if size > self.most:
                raise self._too_large()
            yield item

    def _join(self, items: Iterable[Any], between: str = "", attribute: str | None = None) -> str:
        """The filter `join`, bounded while it reads its items."""
        named = (item[attribute] if isinstance(item, Mapping) else item for item in items) if attribute else items
        return str(between).join(str(item) for item in self._items_to_join(str(between), named))

    def _replace(self, text: Any, old: Any, new: Any, count: int | None = None) -> str:
        """The filter and the method `replace`. The size of the result is computed before it is made."""
        self._step()
        text, old, new = str(text), str(old), str(new)
        times = text.count(old) if count is None or count < 0 else min(count, text.count(old))
        if len(text) + times * len(new) > self.most:
            raise self._too_large()
        return text.replace(old, new, -1 if count is None else count)

    def _indent(self, text: Any, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
        """The filter `indent`. The size of what it adds is computed before it is made."""
        margin = width if isinstance(width, str) else " " * min(width, 1000)
        if (str(text).count("\n") + 1) * len(margin) > self.most:
            raise self._too_large()
        return self._bounded(FILTERS["indent"](str(text), margin, first, blank))


_STEPS, _VALUE = "counted steps", "bounded value"  # names of filters that no template can write


class _Counted(NodeTransformer):
    """Rewrites a parsed template: what loops go over passes `_steps`, and what `~` joins passes `_bounded`."""

    def visit_For(self, node: nodes.For) -> nodes.For:
        """Send what a loop goes over through `_steps`."""
        self.generic_visit(node)  # changes it in place
        node.iter = nodes.Filter(node.iter, _STEPS, [], [], None, None, lineno=node.lineno)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Filter:
        """Send a text that `~` joins through `_bounded`."""
        return nodes.Filter(self.generic_visit(node), _VALUE, [], [], None, None, lineno=node.lineno)


def _raise_exception(message: object = "") -> None:
    """The function `raise_exception(message)`, by which a template refuses a conversation."""
    raise TemplateError(str(message))


def compile_chat_template(source: str, **fixed: str) -> Render:
    """A function render(turns, add_generation_prompt, **more) → text that runs a Jinja chat template.

    Args:
        source: the template.
        fixed: further names that the template knows: bos_token and eos_token.

    Raises:
        UserError: `source` is no valid Jinja, or larger than a chat template is. `render` raises it if the template
            refuses a conversation, fails on it, or meets a bound of this module.
    """
    if len(source) > _MOST_SOURCE:
        raise UserError(f"the folder's chat template has {len(source)} characters; a template has at most {_MOST_SOURCE}.")
    environment = _Bounded()
    try:
        template = environment.from_string(source)
    except (*_FAULTS, SyntaxError, MemoryError) as error:  # the last two from Python's compiler, for nesting
        raise UserError(f"the folder's chat template is no valid Jinja: {_reason(error)}") from None

    def render(turns: list[dict[str, Any]], add_generation_prompt: bool, **more: Any) -> str:
        environment.begin(len(str(more)) + sum(len(str(turn)) for turn in turns))
        try:
            text = template.render(messages=turns, add_generation_prompt=add_generation_prompt, **fixed, **more)
            text.encode("utf-8")
        except _FAULTS as error:
            raise UserError(f"the folder's chat template refused it: {_reason(error)}") from None
        return text

    return render


def _reason(error: BaseException) -> str:
    """A phrase about what a template raised."""
    if isinstance(error, UnicodeEncodeError):
        return "it writes half of a surrogate pair, which is no character"
    text = one_line(error) or type(error).__name__
    return text if isinstance(error, TemplateError) else f"{type(error).__name__}: {text}"
