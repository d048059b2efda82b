"""Sentences in the user's language. Code speaks English; here its sentences are looked up as they leave the program.

A catalogue (`zh_*.py`) maps English templates to Chinese ones. `{}` is a hole in English; `{0}`, `{1}` are the same
holes in Chinese, by their place. Code keeps writing f-strings: `in_language` finds the template from which a finished
sentence was made. A hole may hold a sentence or a phrase that has a template itself. A sentence without a template
stays English, so nothing is lost. A test takes all templates out of the sources and compares them with the catalogue,
both ways. Imports no torch.
"""

from __future__ import annotations

import functools
import importlib
import re
from collections.abc import Iterator

from megatron_patch.language.choice import spoken

_CATALOGUES = ("arguments", "cli", "report", "folders", "files")
_MOST = 4000  # characters of a sentence that is looked up; longer ones are nobody's
_DEPTH = 6  # of sentences within sentences
_LEAST = 9  # characters outside the holes; a shorter template would be found in anything, and is for `fill` alone
_BETWEEN = re.compile(" or | and |, ")  # values, such as `7B or auto`


def fill(template: str, *values: object) -> str:
    """`template` with `values` in its holes, in the user's language. `in_language` has to find the holes."""
    if spoken() == "en":
        return template.format(*values)
    return catalogue().get(template, template).format(*values)


def in_language(sentence: str) -> str:
    """A finished English sentence in the user's language; unchanged if that is English or no catalogue has it."""
    return sentence if spoken() == "en" else _translated(sentence, _DEPTH)


def counted(count: int, what: str) -> str:
    """`1 file`, `3 files`; in Chinese, which has no plural, with the counter that the catalogue gives `{} file`."""
    if spoken() == "en":
        return f"{count} {what}" if count == 1 else f"{count} {what}s"
    return fill(f"{{}} {what}", count)


@functools.cache
def catalogue() -> dict[str, str]:
    """All templates of Chinese, by those of English."""
    parts = (importlib.import_module(f"megatron_patch.language.zh_{name}").SENTENCES for name in _CATALOGUES)
    return {english: chinese for part in parts for english, chinese in part.items()}


def _translated(text: str, depth: int) -> str:
    if not depth or len(text) > _MOST or " " not in text.strip():
        return text
    template, values = find(text)
    if template is not None:
        return catalogue()[template].format(*(_translated(value, depth - 1) for value in values))
    if all(value and " " not in value for value in _BETWEEN.split(text)):
        return text.replace(" or ", " 或 ").replace(" and ", " 和 ")
    parts = text.split("; ")
    return "；".join(_translated(part, depth - 1) for part in parts) if len(parts) > 1 else text


def find(text: str) -> tuple[str | None, tuple[str, ...]]:
    """(the template from which `text` was made, the texts in its holes). Of several the one with most words counts."""
    best: tuple[str | None, tuple[str, ...]] = (None, ())
    length = 0
    for template, words, literals in _shapes():
        if words > length and _stand_in(text, literals):
            match = _pattern(template).fullmatch(text)
            if match:
                best, length = (template, match.groups()), words
    return best


@functools.cache
def _shapes() -> tuple[tuple[str, int, tuple[str, ...]], ...]:
    """(template, characters outside its holes, the texts between them) for each that is long enough to be told."""
    parts = ((template, tuple(_literals(template))) for template in catalogue())
    return tuple((template, size, texts) for template, texts in parts if (size := sum(map(len, texts))) >= _LEAST)


def _stand_in(text: str, literals: tuple[str, ...]) -> bool:
    """Whether `text` has the literals in their order, from its beginning to its end. Only then is the pattern tried."""
    first, *between, last = literals if len(literals) > 1 else (literals[0], "")
    place = len(first)
    if not text.startswith(first) or not text.endswith(last):
        return False
    for part in between:
        place = text.find(part, place)
        if place < 0:
            return False
        place += len(part)
    return place <= len(text) - len(last)


def _literals(template: str) -> Iterator[str]:
    """The texts between the holes; braces that are meant as such are written twice, as in `str.format`."""
    for part in re.split(r"(?<!\{)\{\}(?!\})", template):
        yield part.replace("{{", "{").replace("}}", "}")


@functools.cache
def _pattern(template: str) -> re.Pattern[str]:
    """The pattern of a template. Of two adjacent holes the first takes all; the second is mostly empty."""
    *parts, last = _literals(template)
    holes = ["(.*?)" if behind else "(.*)" for behind in [*parts[1:], last or "end"]]
    return re.compile("".join(re.escape(part) + hole for part, hole in zip(parts, holes)) + re.escape(last), re.DOTALL)
