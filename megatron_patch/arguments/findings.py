"""Reading arguments' texts by their list, and collecting everything that is wrong before saying anything.

Imports no torch, so that a usage error is told at once. A finding is one sentence: which argument (`$13 TP`), what it
got, what is allowed, what to write instead.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from megatron_patch.arguments.argument import TRUE_FALSE, Argument, Script
from megatron_patch.arguments.command_line import Texts
from megatron_patch.arguments.description import default_text, takes
from megatron_patch.formats.json_files import one_line
from megatron_patch.formats.typed import MOST_DIGITS, line_end, number, path_problem, whole_number

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


@dataclass
class Findings:
    """What is wrong with the arguments, all of it. Each reader gives a usable value even where it finds something."""

    by_flag: bool = False  # the command was typed with flags, so their names are those that the user knows
    found: list[tuple[int, str]] = field(default_factory=list)

    def add(self, argument: Argument, got: object, problem: str) -> None:
        """`problem` says what is allowed and what to write instead."""
        label = argument.flag if self.by_flag and argument.flag else argument.label
        self.found.append((argument.number or sys.maxsize, f"{label}: got '{one_line(got)}'; {problem}"))

    def is_about(self, argument: Argument) -> bool:
        """Whether there is a finding about this argument. Where one could not be read, the value in its place is nobody's."""
        return any(number == argument.number for number, _ in self.found)

    def add_flag(self, flag: str, got: object, problem: str) -> None:
        """The same of a flag, which has no place among the documented arguments and comes after them."""
        self.found.append((sys.maxsize, f"{flag}: got '{one_line(got)}'; {problem}"))

    @property
    def sentences(self) -> list[str]:
        """In the order of the script's arguments."""
        return [sentence for _, sentence in sorted(self.found, key=lambda item: item[0])]

    def refuse_line_ends(self, script: Script, texts: Texts) -> Texts:
        """A finding for each value that holds a carriage return or ends a line, which no terminal shows; all without them."""
        clean: Texts = {}
        for argument in script.all:
            given = texts.get(argument.dest)
            if given is None:
                continue
            for text in given if argument.several else [given]:
                if problem := line_end(text):
                    self.add(argument, text, problem)
            clean[argument.dest] = [_clean(text) for text in given] if argument.several else _clean(given)
        return clean

    def values(self, arguments: Iterable[Argument], texts: Texts) -> dict[str, Any]:
        """`dest` → value of each argument, by its kind; the default of one that was not given."""
        return {one.dest: self.value(one, texts[one.dest]) if one.dest in texts else one.default for one in arguments}

    def value(self, argument: Argument, text: Any) -> Any:
        """The value behind one text, or several texts, by the argument's kind."""
        if argument.several:
            for one in text if argument.kind == "paths" else ():
                self.path(argument, one)
            return tuple(text)
        if argument.kind in ("path", "data"):
            return text if self.path(argument, text) or argument.default is None else argument.default
        if argument.kind == "text":
            return self.only(argument, text)
        return getattr(self, argument.kind)(argument, text)

    def path(self, argument: Argument, text: str) -> bool:
        """Whether a path can be looked at; a finding where it cannot."""
        # A blend of several prefixes may be longer than any of them.
        blend = argument.kind == "data" and re.search("[ ,]", text)
        problem = None if blend else path_problem(text)
        if not problem and argument.filled and not text:
            problem = "it takes a path: write one."
        if problem:
            self.add(argument, text, problem)
        return not problem

    def whole(self, argument: Argument, text: str) -> int:
        """A whole number in the argument's range, in digits only: a blank or a carriage return is a slip of the caller's."""
        value, least = whole_number(text), int(argument.range.least)
        example = default_text(argument)
        if value is None and is_whole(text):
            self.add(argument, text, f"it has {len(text)} digits, and a number may have {MOST_DIGITS}: write a smaller one.")
        elif value is None:
            wanted = f"it takes a whole number of at least {least}, in digits: write {example or max(least, 1)}."
            self.add(argument, text, wanted)
        elif argument.range.too_low(value):
            advice = f"{example}, for example" if example else f"{least} or more"
            self.add(argument, text, f"it takes a whole number of at least {least}: write {advice}.")
        elif argument.range.too_high(value):
            most = argument.range.most
            self.add(argument, text, f"it takes a whole number of at most {most}: write {example or most}, for example.")
        else:
            return value
        return argument.default if isinstance(argument.default, int) else least

    def number(self, argument: Argument, text: str) -> float:
        """A finite number in the argument's range."""
        value, example = number(text), argument.example or default_text(argument)
        if value is None or argument.range.too_low(value) or argument.range.too_high(value):
            self.add(argument, text, f"it takes {takes(argument)}: write {example}, for example.")
            return float(example)
        return value

    def choice(self, argument: Argument, text: str) -> str:
        """One of the argument's choices, exactly as written there."""
        allowed = argument.choices
        if text not in allowed:
            self.add(argument, text, f"it takes one of {', '.join(allowed)}: write one of these, in this spelling.")
            return allowed[0]
        return text

    def boolean(self, argument: Argument, text: str) -> bool:
        """`true` or `false`."""
        if text not in TRUE_FALSE:
            self.add(argument, text, f"it takes one of {', '.join(TRUE_FALSE)}: write one of these, in this spelling.")
            return argument.default is True
        return text == "true"

    def only(self, argument: Argument, text: str) -> str:
        """Any text; one of the argument's choices where it has some."""
        if argument.choices and text not in argument.choices:
            self.add(argument, text, f"it takes {' or '.join(argument.choices)}: write that.")
            return argument.choices[0]
        return text

    def size(self, argument: Argument, text: str) -> int:
        """Bytes of `5GB`, `500MB`, `2GiB` or a plain number."""
        match = re.fullmatch(r"([0-9]{1,18}) *([A-Za-z]*)", text)
        if not match or match[2].upper() not in _UNITS or int(match[1]) == 0:
            self.add(argument, text, "it takes a size such as 5GB or 500MB: write 5GB, for example.")
            return 1
        return int(match[1]) * _UNITS[match[2].upper()]

    def exit_if_any(self, script: str) -> None:
        """Print every finding on standard error and leave with status 2, unless there is none."""
        if not self.sentences:
            return
        count = len(self.sentences)
        print(f"{script}: {count} argument error{'s' if count > 1 else ''}; nothing was started.", file=sys.stderr)
        for sentence in self.sentences:
            print(f"  {sentence}", file=sys.stderr)
        sys.exit(2)


def is_whole(text: str) -> bool:
    """Whether a text is digits and nothing else; Python's int() takes blanks, signs and underscores as well."""
    return re.fullmatch("[0-9]+", text) is not None


def _clean(text: str) -> str:
    return text.replace("\r", "").rstrip("\n")
