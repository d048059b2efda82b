"""Reading arguments' texts by their list, and collecting everything that is wrong before saying anything.

Imports no torch, so that a usage error is told at once. A finding is one sentence: which argument (`$13 TP`), what it
got, what is allowed, what to write instead. What it says to write is accepted when it is written.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from megatron_patch.arguments.argument import TRUE_FALSE, Argument, Script
from megatron_patch.arguments.command_line import Given, Texts
from megatron_patch.arguments.description import default_text, takes
from megatron_patch.arguments.meaning import meant_choice, meant_number, meant_size, meant_whole
from megatron_patch.formats.json_files import one_line
from megatron_patch.formats.typed import MOST_DIGITS, line_end, number, path_problem, whole_number
from megatron_patch.language.sentences import fill, in_language

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_LAST = sys.maxsize  # place of a flag, which comes after the documented arguments


@dataclass(frozen=True, order=True)
class Finding:
    """What is wrong with one argument."""

    place: int  # among the script's arguments
    label: str  # the argument's name
    got: str
    problem: str  # what is allowed and what to write

    def __str__(self) -> str:
        return fill("{}: got '{}'; {}", self.label, self.got, in_language(self.problem))


@dataclass
class Findings:
    """What is wrong with the arguments, all of it. Each reader gives a usable value even where it finds something."""

    by_flag: bool = False  # the command was typed with flags, so their names are those that the user knows
    found: list[Finding] = field(default_factory=list)

    def add(self, argument: Argument, got: object, problem: str) -> None:
        """`problem` says what is allowed and what to write instead. The same twice is one finding."""
        label = argument.flag if self.by_flag and argument.flag else argument.label
        self._add(argument.number or _LAST, label, got, problem)

    def add_flag(self, flag: str, got: object, problem: str) -> None:
        """The same of a flag, which has no place among the documented arguments and comes after them."""
        self._add(_LAST, flag, got, problem)

    def _add(self, place: int, label: str, got: object, problem: str) -> None:
        finding = Finding(place, label, one_line(got), problem)
        if finding not in self.found:
            self.found.append(finding)

    def is_about(self, argument: Argument) -> bool:
        """Whether there is a finding about this argument. The value in its place is then one that nobody typed."""
        return any(finding.label in (argument.label, argument.flag) for finding in self.found)

    def is_about_flag(self, flag: str) -> bool:
        """Whether there is a finding about this flag."""
        return any(finding.label == flag for finding in self.found)

    @property
    def sentences(self) -> list[str]:
        """In the order of the script's arguments."""
        return [str(finding) for finding in sorted(self.found, key=lambda finding: finding.place)]

    def texts(self, script: Script, given: Given) -> Texts:
        """The texts without line ends. There is a finding for each line end and for each word of no argument."""
        for word, problem in given.strangers:
            flag, _, got = word.partition("=")
            self.add_flag(flag if flag.startswith("-") else fill("after the last argument"), got or word, problem)
        return self._without_line_ends(script, given.texts)

    def _without_line_ends(self, script: Script, texts: Texts) -> Texts:
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

    def values(self, arguments: Iterable[Argument], texts: Texts, fitting: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """`dest` → value of each argument, by its kind; the default of one that was not given.

        Args:
            fitting: `dest` → what goes with the other arguments: an example of a number, or those of the choices.
        """
        fits = fitting or {}
        return {
            one.dest: self.value(one, texts[one.dest], fits.get(one.dest)) if one.dest in texts else one.default
            for one in arguments
        }

    def value(self, argument: Argument, text: Any, fitting: Any = None) -> Any:
        """The value behind one text, or several texts, by the argument's kind; `fitting` as with `values`."""
        if argument.several:
            for one in text if argument.kind == "paths" else ():
                self.path(argument, one)
            return tuple(text)
        if argument.kind in ("path", "data", "json"):
            return text if self.path(argument, text) or argument.default is None else argument.default
        if argument.kind == "text":
            return self.only(argument, text)
        read = getattr(self, argument.kind)
        return read(argument, text) if fitting is None else read(argument, text, fitting)

    def path(self, argument: Argument, text: str) -> bool:
        """Whether a path can be looked at; a finding where it cannot."""
        # Several paths in one text may be longer than any of them.
        blend = argument.kind in ("data", "json") and re.search("[ ,]", text)
        problem = None if blend else path_problem(text)
        if not problem and argument.filled and not text:
            problem = "it takes a path, and an empty text is none: write the path."
        if problem:
            self.add(argument, text, problem)
        return not problem

    def whole(self, argument: Argument, text: str, example: int | None = None) -> int:
        """A whole number in the argument's range, in digits only: a blank or a carriage return is the caller's mistake.

        `example`: what goes with the other arguments, for the sentence; without it, the list's.
        """
        value, bounds = whole_number(text), argument.range
        if value is not None and not bounds.too_low(value) and not bounds.too_high(value):
            return value
        meant = meant_whole(text)
        if meant is None or bounds.too_low(meant) or bounds.too_high(meant):
            meant = example if example is not None else _whole_example(argument)
        if len(text) > MOST_DIGITS and is_whole(text):
            wanted = f"it has {len(text)} digits, and a number may have {MOST_DIGITS}: write {meant}, for example."
        elif value is not None and bounds.too_high(value):
            wanted = f"it takes a whole number of at most {bounds.most}: write {meant}, for example."
        elif value is not None:
            wanted = f"it takes a whole number of at least {int(bounds.least)}: write {meant}, for example."
        else:
            wanted = f"it takes a whole number of at least {int(bounds.least)}, in digits: write {meant}."
        self.add(argument, text, wanted)
        return argument.default if isinstance(argument.default, int) else int(bounds.least)

    def number(self, argument: Argument, text: str, example: str | None = None) -> float:
        """A finite number in the argument's range; `example` as with `whole`."""
        value, bounds = number(text), argument.range
        if value is not None and not bounds.too_low(value) and not bounds.too_high(value):
            return value
        meant = number(meant_number(text) or "")
        usual = example or default_text(argument) or argument.example
        fits = meant is not None and not bounds.too_low(meant) and not bounds.too_high(meant)
        advice = meant_number(text) if fits else f"{usual}, for example"
        self.add(argument, text, f"it takes {takes(argument)}: write {advice}.")
        return float(usual)

    def choice(self, argument: Argument, text: str, fitting: Sequence[str] | None = None) -> str:
        """One of the argument's choices, spelt as there; `fitting` are those that go with the other arguments."""
        allowed = argument.choices
        if text in allowed:
            return text
        fitting = allowed if fitting is None else fitting
        advice = meant_choice(text, fitting)
        if advice is None and tuple(fitting) == tuple(allowed):
            default = default_text(argument)
            advice = f"{default}, for example" if default else "one of these, in this spelling"
        self.add(argument, text, f"it takes one of {', '.join(allowed)}: write {advice or ' or '.join(fitting)}.")
        return argument.default if isinstance(argument.default, str) else allowed[0]

    def boolean(self, argument: Argument, text: str) -> bool:
        """`true` or `false`."""
        if text in TRUE_FALSE:
            return text == "true"
        meant = meant_choice(text, TRUE_FALSE) or default_text(argument)
        advice = meant or "one of these, in this spelling"
        self.add(argument, text, f"it takes true or false: write {advice}.")
        return argument.default is True

    def only(self, argument: Argument, text: str) -> str:
        """Any text; one of the argument's choices where it has some."""
        if argument.choices and text not in argument.choices:
            self.add(argument, text, f"it takes {argument.choices[0]}: write {argument.choices[0]}.")
            return argument.choices[0]
        return text

    def size(self, argument: Argument, text: str) -> int:
        """Bytes of `5GB`, `500MB`, `2GiB` or a plain number."""
        match = re.fullmatch(r"([0-9]{1,18}) *([A-Za-z]*)", text)
        if not match or match[2].upper() not in _UNITS or int(match[1]) == 0:
            advice = meant_size(text) or "5GB, for example"
            self.add(argument, text, f"it takes a size such as 5GB or 500MB: write {advice}.")
            return 1
        return int(match[1]) * _UNITS[match[2].upper()]

    def exit_if_any(self, script: str) -> None:
        """Print every finding on standard error and leave with status 2, unless there is none."""
        if not self.found:
            return
        count = len(self.found)
        head = "{}: 1 argument error; nothing was started." if count == 1 else "{}: {} argument errors; nothing was started."
        print(fill(head, script, count), file=sys.stderr)
        for sentence in self.sentences:
            print(f"  {sentence}", file=sys.stderr)
        sys.exit(2)


def _whole_example(argument: Argument) -> int:
    """What the list writes, as far as it is in the range, which other arguments may have raised."""
    usual = whole_number(argument.example or default_text(argument))
    if usual is None or argument.range.too_low(usual) or argument.range.too_high(usual):
        return int(argument.range.least)
    return usual


def is_whole(text: str) -> bool:
    """Whether a text is digits and nothing else; Python's int() takes blanks, signs and underscores as well."""
    return re.fullmatch("[0-9]+", text) is not None


def _clean(text: str) -> str:
    return text.replace("\r", "").rstrip("\n")
