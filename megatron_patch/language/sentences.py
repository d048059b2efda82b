"""Sentences in the user's language. Code speaks English; here its sentences are looked up as they leave the program.

A catalogue (`zh_*.py`) maps templates of English to templates of Chinese. `{}` is a hole in English, and `{0}`, `{1}` are the
same holes in Chinese, by their place. Code goes on writing f-strings: `in_language` finds the template that a finished sentence
was made from. A hole may hold a sentence or a phrase that has a template itself. Whatever has none stays English, so nothing is
ever lost. A test takes all templates out of the sources and compares them with the catalogue, both ways. Imports no torch.
"""

from __future__ import annotations

import functools
import importlib
import re
from collections.abc import Iterator

from megatron_patch.language.choice import spoken

_CATALOGUES = ("arguments", "cli", "folders", "files")
_MOST = 4000  # characters of a sentence that is looked up; longer ones are nobody's
_DEPTH = 6  # of sentences within sentences


def fill(template: str, *values: object) -> str:
    """`template` with `values` in its holes, in the user's language. Exact, where `in_language` has to find the holes."""
    if spoken() == "en":
        return template.format(*values)
    return catalogue().get(template, template).format(*values)


def in_language(sentence: str) -> str:
    """A finished English sentence in the user's language; as it is where that is English, or where it is in no catalogue."""
    return sentence if spoken() == "en" else _translated(sentence, _DEPTH)


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
    # Several sentences or phrases after one another, each with a template of its own.
    for mark, between in (("; ", "；"), (". ", ". "), (", ", ", ")):
        parts = text.split(mark)
        if len(parts) > 1:
            found = [
                _translated(part + mark.strip() if mark == ". " and part is not parts[-1] else part, depth - 1) for part in parts
            ]
            if found != parts:
                return (between if mark != ". " else "").join(found)
    return text


def find(text: str) -> tuple[str | None, tuple[str, ...]]:
    """The template that `text` was made from and what stands in its holes; of several, the one with the most words of its own."""
    best: tuple[str | None, tuple[str, ...]] = (None, ())
    length = 0
    for template, words, begin, end in _shapes():
        if words <= length or not text.startswith(begin) or not text.endswith(end):
            continue
        match = _pattern(template).fullmatch(text)
        if match:
            best, length = (template, match.groups()), words
    return best


@functools.cache
def _shapes() -> tuple[tuple[str, int, str, str], ...]:
    """(template, characters outside its holes, those before the first hole, those behind the last) of each."""
    return tuple(_shape(template) for template in catalogue())


def _shape(template: str) -> tuple[str, int, str, str]:
    parts = list(_literals(template))
    return template, sum(map(len, parts)), parts[0], parts[-1]


def _literals(template: str) -> Iterator[str]:
    """The texts between the holes; braces that are meant as such are written twice, as in `str.format`."""
    for part in re.split(r"(?<!\{)\{\}(?!\})", template):
        yield part.replace("{{", "{").replace("}}", "}")


@functools.cache
def _pattern(template: str) -> re.Pattern[str]:
    return re.compile("(.*?)".join(map(re.escape, _literals(template))), re.DOTALL)
