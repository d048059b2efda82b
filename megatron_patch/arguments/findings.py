"""Documented positional arguments: reading them, and collecting everything that is wrong before saying anything.

Imports no torch, so that a usage error is told at once. A finding is one sentence: which argument (`$13 TP`), what it
got, what is allowed, what to write instead.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from megatron_patch.formats.json_files import one_line
from megatron_patch.formats.typed import MOST_DIGITS, line_end, number, path_problem, whole_number

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
        self.found.append((argument.number, f"{argument.label}: got '{one_line(got)}'; {problem}"))

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

    def refuse_line_ends(self, arguments: dict[str, Argument], raw: dict[str, str]) -> dict[str, str]:
        """A finding for each value that holds a carriage return or ends a line, which no terminal shows; all without them."""
        for name, text in raw.items():
            problem = line_end(text)
            if problem:
                self.add(arguments[name], text, problem)
        return {name: text.replace("\r", "").rstrip("\n") for name, text in raw.items()}

    def path(self, argument: Argument, text: str) -> bool:
        """Whether a path can be looked at; a finding where it cannot."""
        problem = path_problem(text)
        if problem:
            self.add(argument, text, problem)
        return not problem

    def whole(self, argument: Argument, text: str, minimum: int = 1) -> int:
        """A whole number of at least `minimum`, in digits only: a blank or a carriage return is a slip of the caller's."""
        value = whole_number(text)
        if value is None and is_whole(text):
            self.add(argument, text, f"it has {len(text)} digits, and a number may have {MOST_DIGITS}: write a smaller one.")
            return minimum
        if value is None:
            self.add(argument, text, f"it takes a whole number of at least {minimum}, in digits: write {max(minimum, 1)}.")
            return minimum
        if value < minimum:
            self.add(argument, text, f"it takes a whole number of at least {minimum}: write {minimum} or more.")
            return minimum
        return value

    def number(self, argument: Argument, text: str, *, example: str = "1e-5") -> float:
        """A finite number, 0 or more."""
        value = number(text)
        if value is None or value < 0:
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


class Parser(argparse.ArgumentParser):
    """An argparse parser whose findings are one sentence, and which takes numbers in digits only."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(allow_abbrev=False, **kwargs)
        # What `type=int` and `type=float` stand for; Python's own take `1_000`, blanks and digits of other scripts as well.
        self.register("type", int, _whole)
        self.register("type", float, _number)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        for word in args if args is not None else sys.argv[1:]:
            flag, _, value = word.partition("=")
            # argparse takes a value of two dashes for none at all, and gives an empty list.
            if flag.startswith("--") and value == "--":
                self.error(f"argument {one_line(flag)}: got '--'; write a value behind the equals sign")
            problem = line_end(word)
            if problem and not self.says_line_ends_itself(flag):
                self.error(f"argument '{one_line(word)}': {problem.rstrip('.')}")
        return super().parse_known_args(args, namespace)

    def says_line_ends_itself(self, flag: str) -> bool:
        """Whether what is read behind this parser finds line ends in the values of `flag`."""
        return False

    def error(self, message: str) -> NoReturn:
        """One sentence instead of argparse's page of flags."""
        self.exit(2, f"{self.prog}: {one_line(message, 500)}. --help lists the flags.\n")


def _whole(text: str) -> int:
    value = whole_number(text.removeprefix("-"))
    if value is None:
        raise argparse.ArgumentTypeError(f"got '{one_line(text)}'; it takes a whole number, in at most {MOST_DIGITS} digits")
    return -value if text.startswith("-") else value


def _number(text: str) -> float:
    value = number(text)
    if value is None:
        raise argparse.ArgumentTypeError(f"got '{one_line(text)}'; it takes a number, such as 0.1 or 1e-5")
    return value


class UsageParser(Parser):
    """A parser of documented arguments' flags, every one a required string that a reader above judges."""

    def __init__(self, arguments: dict[str, Argument], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.documented = {argument.flag for argument in arguments.values()}
        for argument in arguments.values():
            # Not in --help, which a script prints below its own list of them.
            self.add_argument(argument.flag, required=True, metavar=argument.name, help=argparse.SUPPRESS)

    def says_line_ends_itself(self, flag: str) -> bool:
        return flag in self.documented
