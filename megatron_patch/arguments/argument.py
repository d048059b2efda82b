"""What an argument is: name, flag, kind, range, default and meaning, as data. Every script's list is made of these.

A list is the one source of four things: the checks and their sentences (`findings.py`), the words that a command line
takes (`command_line.py`), `--help`, and the tables in Markdown (`description.py`). Imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

WHOLE_MOST = (1 << 31) - 1  # of a whole number that goes into C or onto a GPU as 32 bits
TRUE_FALSE = ("true", "false")

# choice: one of `choices`. boolean: true or false. path: a file or folder. data: a prefix, a blend of them or JSON
# files. json: JSON files in one text. size: bytes, such as 5GB. text: anything. paths, texts: one or more of them.
Kind = Literal["whole", "number", "choice", "boolean", "path", "data", "json", "size", "text", "paths", "texts"]


@dataclass(frozen=True)
class Range:
    """The numbers from `least` to `most`. `above` leaves out `least` itself, `below` leaves out `most`."""

    least: float = 0
    most: float | None = None
    above: bool = False
    below: bool = False

    def too_low(self, value: float) -> bool:
        """Whether `value` lies below the range."""
        return value < self.least or (self.above and value == self.least)

    def too_high(self, value: float) -> bool:
        """Whether `value` lies above the range."""
        return self.most is not None and (value > self.most or (self.below and value == self.most))


@dataclass(frozen=True)
class Argument:
    """One argument of a script. `number` is its place among the documented ones, from 1; flags behind them have 0."""

    name: str  # as documented, TP; a flag's is the flag
    flag: str  # that carries it to Python; empty: it stands without one
    kind: Kind
    zh: str  # its meaning; for a documented argument, word for word what stands behind it in the script
    en: str
    range: Range = Range()  # of whole and number
    choices: tuple[str, ...] = ()  # of choice, and of text that can be one thing only
    default: object = None  # of a flag, as the program uses it; None: there is none, and `en` says what happens then
    example: str = ""  # as the documented commands have it, for a sentence or a command that is offered
    required: bool = False
    filled: bool = False  # path: an empty text is refused here, with no sentence of its own elsewhere
    number: int = 0

    @property
    def label(self) -> str:
        """The name by which its user knows it: `$13 TP` for a documented argument, `--seed` for a flag."""
        return f"${self.number} {self.name}" if self.number else self.flag or self.name

    @property
    def dest(self) -> str:
        """The name under which argparse keeps its text."""
        return (self.flag.lstrip("-") or self.name.lower()).replace("-", "_")

    @property
    def several(self) -> bool:
        """Whether it takes more than one word."""
        return self.kind in ("paths", "texts")


@dataclass(frozen=True)
class Script:
    """One command: the documented arguments in their order, the flags that may follow, and what both are for."""

    name: str  # as it introduces its sentences
    path: str  # of the shell script in the project; empty: `python -m` and the name
    zh: str
    en: str
    documented: tuple[Argument, ...]
    flags: tuple[Argument, ...]
    # Known and not listed: another script's flags, which are read so that a sentence can say whose they are.
    others: tuple[Argument, ...] = ()

    @property
    def by_name(self) -> dict[str, Argument]:
        """The documented arguments: name → argument."""
        return {argument.name: argument for argument in self.documented}

    @property
    def all(self) -> tuple[Argument, ...]:
        """Every argument that can be read, those that are known and not listed too."""
        return (*self.documented, *self.flags, *self.others)


def numbered(*arguments: Argument) -> tuple[Argument, ...]:
    """`arguments` in the script's order, with their places."""
    return tuple(replace(argument, number=place) for place, argument in enumerate(arguments, start=1))


def documented(name: str, flag: str, kind: Kind, zh: str, en: str, **more: Any) -> Argument:
    """An argument that the script always gives; `numbered` gives it its place."""
    return Argument(name, flag, kind, zh, en, required=True, **more)


def flagged(flag: str, kind: Kind, zh: str, en: str, **more: Any) -> Argument:
    """A flag that may follow the documented arguments."""
    return Argument(flag, flag, kind, zh, en, **more)
