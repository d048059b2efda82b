"""Words of a command line → the text behind each argument of a script's list. Nothing is judged here but what is no argument.

Imports no torch.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

from megatron_patch.arguments.argument import Argument, Script
from megatron_patch.arguments.description import help_text
from megatron_patch.formats.json_files import one_line
from megatron_patch.formats.typed import line_end

Texts = dict[str, Any]  # `dest` of each argument that was given → its text, or the list of its texts


def given_texts(script: Script, argv: Sequence[str]) -> Texts:
    """What was typed, as it was typed, for every argument that was given.

    Raises:
        SystemExit: status 2 after a sentence about unknown flags, missing ones or a missing value; 0 after --help.
    """
    return vars(_Parser(script).parse_args(list(argv)))


class _Parser(argparse.ArgumentParser):
    """argparse for taking words apart alone: every value stays a text, and what is wrong is one sentence."""

    def __init__(self, script: Script) -> None:
        super().__init__(prog=script.name, allow_abbrev=False, argument_default=argparse.SUPPRESS)
        self.script = script
        for argument in script.all:
            self.add_argument(argument.flag or argument.dest, **_how(argument))

    def format_help(self) -> str:
        return help_text(self.script)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        for word in args:
            flag, _, value = word.partition("=")
            if not flag.startswith("--"):
                continue
            # argparse takes a value of two dashes for none at all, and gives an empty list.
            if value == "--":
                self.error(f"argument {one_line(flag)}: got '--'; write a value behind the equals sign")
            # Line ends in a value are found under the argument's name, among everything else.
            if problem := line_end(flag):
                self.error(f"argument '{one_line(word)}': {problem.rstrip('.')}")
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """One sentence instead of argparse's page of flags."""
        self.exit(2, f"{self.prog}: {one_line(message, 500)}. --help lists the flags.\n")


def _how(argument: Argument) -> dict[str, Any]:
    """argparse's part of an argument: how many words it takes, and whether it must be there."""
    how: dict[str, Any] = {}
    if argument.flag:
        how |= {"dest": argument.dest, "required": argument.required}
    if argument.several:
        how["nargs"] = "+"
    if argument.kind == "boolean" and not argument.number:
        how |= {"nargs": "?", "const": "true"}
    return how
