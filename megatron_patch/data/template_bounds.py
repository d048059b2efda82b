"""What one rendering of a chat template may use: steps, time, and the size of what it makes.

A list counts with everything in it, and an object that stands in it twice counts twice. What could make much of little
in one go is computed here before it is made.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from jinja2 import TemplateError

_MOST_STEPS = 200_000  # steps of loops and calls, of one rendering
_MOST_SECONDS = 1.0  # of one rendering; usual are 0.1 ms
_MOST_TEXT = 1 << 20  # characters of a text, items of a list
_MOST_OUTPUT = 1 << 22  # characters written out
_MOST_NUMBER = 10**30
_MOST_DEPTH = 100  # of lists in lists; JSON schemas of tools have ten or twenty
_WIDEST = 1000
_TOO_WIDE = "a text is formatted to a width of thousands, or to one that is reckoned"
# A width or a precision of four digits, or one that is another value: of `%`, and of `str.format`.
_WIDE_PERCENT = re.compile(r"%(?:\([^()]*\))?[-#0 +]*[0-9.]*(?:\*|[0-9]{4})|%\([^()]*\(")
_WIDE_BRACES = re.compile(r"\{[^{}]*(?:[0-9]{4}|\{)")


class TooMuch(TemplateError):
    """A template met a bound."""


class Budget:
    """What is left of a rendering's bounds, counted down while it runs."""

    def __init__(self) -> None:
        self.begin(0)

    def begin(self, characters: int) -> None:
        """Begin a rendering with a full budget. `characters`: size of the conversation, with which the budget grows."""
        self.steps, self.end = _MOST_STEPS + characters, time.monotonic() + _MOST_SECONDS + characters / 1e6
        self.output, self.most = _MOST_OUTPUT + 4 * characters, _MOST_TEXT + 4 * characters

    def step(self) -> None:
        """Count one step.

        Raises:
            TooMuch: the budget or the time is used up.
        """
        self.steps -= 1
        if self.steps < 0 or time.monotonic() > self.end:
            raise TooMuch(f"it takes more than {_MOST_STEPS} steps or {_MOST_SECONDS:g} s")

    def counted(self, items: Iterable[Any]) -> Iterator[Any]:
        """`items`, each counted as a step. Every loop of a template goes through this."""
        for item in items:
            self.step()
            yield item

    def written(self, value: Any) -> str:
        """The text of a value that the template writes out, counted.

        Raises:
            TooMuch: it, or all that is written, is too much.
        """
        self.step()
        text = value if isinstance(value, str) else str(self.bounded(value))
        self.output -= len(text)
        if self.output < 0:
            raise TooMuch(f"it writes more than {_MOST_OUTPUT} characters")
        return text

    def bounded(self, value: Any) -> Any:
        """Return `value` if it is not too large.

        Raises:
            TooMuch: it is.
        """
        self.step()
        if isinstance(value, int) and abs(value) > _MOST_NUMBER:
            raise TooMuch("it reckons with numbers of more than 30 digits")
        if isinstance(value, (str, list, tuple, dict)):
            self.size(value)
        return value

    def size(self, value: Any, before: int = 0, depth: int = 0) -> int:
        """`before` plus the characters and items in `value`.

        Raises:
            TooMuch: that is beyond the bound.
        """
        if depth > _MOST_DEPTH:
            raise TooMuch("it makes lists in lists in lists")
        if isinstance(value, dict):
            for key, item in value.items():
                before = self.size(item, self.size(key, before, depth + 1), depth + 1)
        elif isinstance(value, (list, tuple)):
            for item in value:
                before = self.size(item, before, depth + 1)
        if isinstance(value, str):
            before += len(value)
        else:  # of a number, its 64-bit words
            before += 1 + (value.bit_length() >> 6 if isinstance(value, int) else 0)
        self.require_room(before)
        return before

    def require_room(self, size: int) -> None:
        """Check that a text or a list may have this size.

        Raises:
            TooMuch: it may not.
        """
        if size > self.most:
            raise TooMuch(f"it makes a text or a list of more than {self.most} characters or items")

    def require_narrow(self, width: int) -> None:
        """Check a width that comes again in each line or for each item, or the length of a format.

        Raises:
            TooMuch: it is in the thousands.
        """
        if width > _WIDEST:
            raise TooMuch(_TOO_WIDE)

    def require_exponent(self, exponent: Any) -> None:
        """Refuse `10 ** 10 ** 10` before it is computed.

        Raises:
            TooMuch: it comes to too much.
        """
        if isinstance(exponent, int) and exponent > 100:
            raise TooMuch("it reckons with numbers of more than 30 digits")

    def require_product(self, left: Any, right: Any) -> None:
        """Refuse `'x' * 10**9` before it is computed.

        Raises:
            TooMuch: it comes to too much.
        """
        for many, times in ((left, right), (right, left)):
            if isinstance(many, (str, list, tuple)) and isinstance(times, int):
                self.require_room(len(many) * times)

    def require_percent(self, text: str, values: Any) -> None:
        """Refuse `text % values` before it is computed.

        Raises:
            TooMuch: it could come to too much.
        """
        self._require_format(text, "%", _WIDE_PERCENT, values)

    def require_braces(self, text: str, values: Any) -> None:
        """Refuse `text.format(values)` before it is computed.

        Raises:
            TooMuch: it could come to too much.
        """
        self._require_format(text, "{", _WIDE_BRACES, values)

    def _require_format(self, text: str, sign: str, wide: re.Pattern[str], values: Any) -> None:
        """Refuse widths of thousands, and as many fields as make too much of the largest value.

        sign: what each field of `text` begins with.
        """
        if wide.search(text):
            raise TooMuch(_TOO_WIDE)
        each = values.values() if isinstance(values, dict) else values if isinstance(values, tuple) else (values,)
        self.require_room(len(text) + text.count(sign) * max(map(self.size, each), default=0))

    def filter(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """One of Jinja's filters with a bounded result. Its arguments are bounded already."""

        def bounded(*args: Any, **kwargs: Any) -> Any:
            return self.bounded(function(*args, **kwargs))

        vars(bounded).update(getattr(function, "__dict__", {}))  # Jinja's marks of what a filter wants to be passed
        return bounded
