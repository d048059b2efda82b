"""From the words of a command line to a text for each argument of a script's list. Imports no torch.

Values are not judged here. A word that belongs to no argument is found, with what to write instead.
"""

from __future__ import annotations

import argparse
import difflib
import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from megatron_patch.arguments.argument import Argument, Script
from megatron_patch.arguments.description import help_text
from megatron_patch.formats.json_files import one_line
from megatron_patch.formats.typed import line_end
from megatron_patch.language.choice import LANGUAGES, Language, ask
from megatron_patch.language.sentences import fill, in_language

Texts = dict[str, Any]  # `dest` of each argument that was given → its text, or the list of its texts

_NEAR = 0.86  # likeness of two flags from which one is taken for a slip of the other: a letter or two


@dataclass(frozen=True)
class Given:
    """What was typed: a text for each argument that was given, and for each word that belongs to none what to write."""

    texts: Texts
    strangers: tuple[tuple[str, str], ...]


def given_texts(script: Script, argv: Sequence[str]) -> Given:
    """What was typed, as it was typed. From here on the process speaks the language that `--language` asks for.

    Raises:
        SystemExit: status 2 after a sentence about a missing argument or a missing value; 0 after --help.
    """
    ask(asked_language(argv))
    texts, words = _parser(script).parse_known_args(list(argv))
    found = vars(texts)
    found.pop("language", None)
    return Given(found, tuple((word, _advice(script, word)) for word in words))


def asked_language(argv: Sequence[str]) -> Language | None:
    """What `--language` asks for, read before anything else so that every sentence follows it."""
    for word, behind in zip(argv, [*argv[1:], ""]):
        value = behind if word == "--language" else word.removeprefix("--language=")
        for language in LANGUAGES:
            if word.startswith("--language") and value == language:
                return language
    return None


def _advice(script: Script, word: str) -> str:
    """What to write instead of a word that the script does not know."""
    if not word.startswith("-"):
        return "it stands behind the documented arguments and belongs to no flag: remove it."
    flag = word.partition("=")[0]
    negated = re.fullmatch("--no-?(.+)", flag)
    booleans = {one.flag: one for one in script.flags if one.kind == "boolean"}
    if negated and f"--{negated[1]}" in booleans:
        return f"there is no such flag: write --{negated[1]} false."
    flags = [one.flag for one in script.flags]
    near = difflib.get_close_matches(flag.replace("_", "-"), flags, 1, _NEAR)
    if near:
        return f"there is no such flag: write {near[0]}, or remove it."
    return "there is no such flag: remove it; --help lists those that there are."


@functools.cache
def _parser(script: Script) -> _Parser:
    return _Parser(script)


class _Parser(argparse.ArgumentParser):
    """argparse for taking words apart alone: every value stays a text, and what is wrong is one sentence."""

    def __init__(self, script: Script) -> None:
        super().__init__(prog=script.name, allow_abbrev=False, argument_default=argparse.SUPPRESS)
        self.script = script
        for argument in script.all:
            self.add_argument(argument.flag or argument.dest, **_how(argument))
        self.add_argument("--language", choices=LANGUAGES)

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
        said = in_language(one_line(message, 500))
        self.exit(2, fill("{}: {}. --help lists the flags.", self.prog, said) + "\n")


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
