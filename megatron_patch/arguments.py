"""Documented positional arguments: reading them, and collecting everything that is wrong before saying anything.

Imports no torch, so that a usage error is told at once. A finding is one sentence: which argument (`$13 TP`), what it
got, what is allowed, what to write instead.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NoReturn

_TRUE_FALSE = ("true", "false")


@dataclass(frozen=True)
class Argument:
    """One documented argument of a script: its place, its name there, and the flag that carries it to Python."""

    number: int
    name: str
    flag: str

    @property
    def label(self) -> str:
        return f"${self.number} {self.name}"

    @property
    def dest(self) -> str:
        return self.flag.lstrip("-").replace("-", "_")


def numbered(*pairs: tuple[str, str]) -> dict[str, Argument]:
    """`(name, flag)` pairs in the script's order, as Arguments by name."""
    return {name: Argument(place, name, flag) for place, (name, flag) in enumerate(pairs, start=1)}


@dataclass
class Findings:
    """What is wrong with the arguments, all of it. Each reader gives a usable value even where it finds something."""

    found: list[tuple[int, str]] = field(default_factory=list)

    def add(self, argument: Argument, got: object, problem: str) -> None:
        """`problem` says what is allowed and what to write instead."""
        self.found.append((argument.number, f"{argument.label}: got '{got}'; {problem}"))

    def add_flag(self, flag: str, got: object, problem: str) -> None:
        """The same of a flag, which has no place among the documented arguments and comes after them."""
        self.found.append((sys.maxsize, f"{flag}: got '{got}'; {problem}"))

    @property
    def sentences(self) -> list[str]:
        """In the order of the script's arguments."""
        return [sentence for _, sentence in sorted(self.found, key=lambda item: item[0])]

    def whole(self, argument: Argument, text: str, minimum: int = 1) -> int:
        """A whole number of at least `minimum`, in digits only: a blank or a carriage return is a slip of the caller's."""
        if not is_whole(text):
            self.add(argument, text, f"it takes a whole number of at least {minimum}, in digits: write {max(minimum, 1)}.")
            return minimum
        value = int(text)
        if value < minimum:
            self.add(argument, text, f"it takes a whole number of at least {minimum}: write {minimum} or more.")
            return minimum
        return value

    def number(self, argument: Argument, text: str, *, example: str = "1e-5") -> float:
        """A finite number, 0 or more."""
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value) or value < 0:
            self.add(argument, text, f"it takes a number of at least 0: write {example}, for example.")
            return 0.0
        return value

    def choice(self, argument: Argument, text: str, allowed: Sequence[str]) -> str:
        """One of `allowed`, exactly as written there."""
        if text not in allowed:
            self.add(argument, text, f"it takes one of {', '.join(allowed)}: write one of these, in this spelling.")
            return allowed[0]
        return text

    def boolean(self, argument: Argument, text: str) -> bool:
        """`true` or `false`."""
        return self.choice(argument, text, _TRUE_FALSE) == "true"

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


class UsageParser(argparse.ArgumentParser):
    """An argparse parser of documented arguments' flags, every one a required string that a reader above judges."""

    def __init__(self, arguments: dict[str, Argument], **kwargs: object) -> None:
        super().__init__(allow_abbrev=False, **kwargs)  # type: ignore[arg-type]
        for argument in arguments.values():
            # Not in --help, which a script prints below its own list of them.
            self.add_argument(argument.flag, required=True, metavar=argument.name, help=argparse.SUPPRESS)

    def error(self, message: str) -> NoReturn:
        """One sentence instead of argparse's page of flags."""
        self.exit(2, f"{self.prog}: {message}. --help lists the flags.\n")
