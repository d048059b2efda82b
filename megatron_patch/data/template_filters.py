"""Filters, methods and functions of chat templates that could make much of little: bounded before they run.

`tojson` and `strftime_now` are transformers', for which templates are written. Jinja's own `tojson` would sort keys and
write `\\u5317` for a Chinese character.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from typing import Any

from jinja2 import Environment, pass_environment, pass_eval_context
from jinja2.filters import FILTERS, make_attrgetter

from megatron_patch.data.template_bounds import Budget, TooMuch

# Filters that make a large text of a small one, or take a time that is the square of it. No chat template needs them.
_LEFT_OUT = ("pprint", "striptags", "urlize", "wordwrap", "xmlattr")
WIDTHS = frozenset(("center", "ljust", "rjust", "zfill"))  # methods of texts whose first argument is a width
# Methods of texts that take as long as both texts' sizes multiplied, over 64 in a machine's word.
_SEARCHES = frozenset(("lstrip", "rfind", "rindex", "rpartition", "rsplit", "rstrip", "strip"))


class Filters:
    """The filters of one environment, within its budget."""

    def __init__(self, budget: Budget) -> None:
        self.budget = budget

    def all(self) -> dict[str, Callable[..., Any]]:
        """Name → filter: Jinja's, and transformers' `tojson`."""
        own = {"join": self._join, "replace": self.replace, "indent": self._indent, "tojson": self._tojson,
               "format": self._format, "batch": self._batch, "slice": self._slice, "center": self._center,
               "round": self._round, "sum": self._sum, "trim": self._trim}  # fmt: skip
        jinja_s = {name: function for name, function in FILTERS.items() if name not in _LEFT_OUT}
        return {name: self.budget.filter(function) for name, function in (jinja_s | own).items()}

    def items_to_join(self, between: str, items: Iterable[Any]) -> Iterator[Any]:
        """The items to be joined, while what they come to stays within the bound."""
        size = 0
        for item in items:
            size += len(item if isinstance(item, str) else str(self.budget.bounded(item))) + len(between)
            self.budget.require_room(size)
            yield item

    def replace(self, text: Any, old: Any, new: Any, count: int | None = None) -> str:
        """The filter and the method `replace`. The size of the result is computed before it is made."""
        self.budget.step()
        text, old, new = str(text), str(old), str(new)
        times = text.count(old) if count is None or count < 0 else min(count, text.count(old))
        self.budget.require_room(len(text) + times * len(new))
        return text.replace(old, new, -1 if count is None else count)

    def require_width(self, text: str, method: str, args: Iterable[Any]) -> None:
        """Refuse a method of a text that pads it to a width, before it runs."""
        number = next((arg for arg in args if isinstance(arg, int)), 0)
        if method in WIDTHS:
            self.budget.require_room(number)
        if method == "expandtabs":
            self.budget.require_room(len(text) + text.count("\t") * (number or 8))

    def require_search(self, text: str, method: str, args: Iterable[Any]) -> None:
        """Refuse a method of a text that looks for a long one in a slow way, before it runs."""
        if method in _SEARCHES:
            sought = next((len(arg) for arg in args if isinstance(arg, str)), 0)
            self.budget.require_room(len(text) * sought // 64)

    def _trim(self, value: Any, chars: str | None = None) -> str:
        """The filter `trim`."""
        self.require_search(str(value), "strip", (chars,))
        return FILTERS["trim"](value, chars)

    def _round(self, value: float, precision: int = 0, method: str = "common") -> float:
        """The filter `round`, which reckons with 10 to the power of the precision."""
        self.budget.require_exponent(abs(precision))
        return FILTERS["round"](value, precision, method)

    @pass_environment
    def _sum(self, environment: Environment, iterable: Iterable[Any], attribute: Any = None, start: Any = 0) -> Any:
        """The filter `sum`, of numbers: lists would be copied once for each that is added."""
        if not isinstance(start, (int, float)):
            raise TooMuch("it adds up lists")
        return FILTERS["sum"](environment, self.budget.counted(iterable), attribute, start)

    @pass_environment
    def _join(self, environment: Environment, items: Iterable[Any], d: str = "", attribute: Any = None) -> str:
        """The filter `join`, bounded while it reads its items. Its arguments have Jinja's names."""
        named = items if attribute is None else map(make_attrgetter(environment, attribute), items)
        return str(d).join(str(item) for item in self.items_to_join(str(d), named))

    def _indent(self, s: Any, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
        """The filter `indent`. The size of what it adds is computed before it is made."""
        text = str(s)
        self.budget.require_room((text.count("\n") + 1) * (len(width) if isinstance(width, str) else width))
        return FILTERS["indent"](text, width, first, blank)

    def _format(self, value: Any, *args: Any, **kwargs: Any) -> str:
        """The filter `format`, which is the operator `%`."""
        self.budget.require_percent(str(value), kwargs or args)
        return FILTERS["format"](value, *args, **kwargs)

    def _center(self, value: Any, width: int = 80) -> str:
        """The filter `center`."""
        self.budget.require_room(width)
        return FILTERS["center"](value, width)

    def _batch(self, value: Any, linecount: int, fill_with: Any = None) -> Iterator[Any]:
        """The filter `batch`, which fills up the last line."""
        self.budget.require_room(linecount)
        return FILTERS["batch"](value, linecount, fill_with)

    @pass_eval_context
    def _slice(self, eval_ctx: Any, value: Any, slices: int, fill_with: Any = None) -> Iterator[Any]:
        """The filter `slice`."""
        self.budget.require_room(slices)
        return FILTERS["slice"](eval_ctx, value, slices, fill_with)

    def _tojson(
        self,
        x: Any,
        ensure_ascii: bool = False,
        indent: int | str | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        """transformers' filter `tojson`, which is `json.dumps`. What it makes is counted while it is made."""
        self.budget.bounded(x)
        self.budget.require_narrow(len(indent) if isinstance(indent, str) else indent or 0)
        encoder = json.JSONEncoder(ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
        pieces, size = [], 0
        for piece in encoder.iterencode(x):
            size += len(piece)
            self.budget.require_room(size)
            pieces.append(piece)
        return "".join(pieces)


def strftime_now(budget: Budget, now: Callable[[], datetime]) -> Callable[[str], str]:
    """transformers' function `strftime_now(format)`: the date as text.

    now: says which date.
    """

    def written(format: str) -> str:
        # strftime's result has at most 256 characters for each one of its format.
        budget.require_narrow(len(format))
        return now().strftime(format)

    return written
