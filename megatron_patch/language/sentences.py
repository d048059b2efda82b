"""Sentences in the user's language. Code speaks English; here its sentences are looked up as they leave the program.

A catalogue (`zh_*.py`) maps English templates to Chinese ones. `{}` is a hole in English; `{0}`, `{1}` are the same
holes in Chinese, by their place. Code keeps writing f-strings: `in_language` finds the template from which a finished
sentence was made. A hole may hold a sentence or a phrase that has a template itself. A sentence without a template
stays English, so nothing is lost. A test takes all templates out of the sources and compares them with the catalogue,
both ways. Imports no torch.

A line is compared with few of the templates: those that begin, or end, with the same letters as it does. That takes
less than a ten-thousandth of a second, so a training run's lines may all pass through here.
"""

from __future__ import annotations

import functools
import importlib
import re
import unicodedata
from collections.abc import Iterator

from megatron_patch.language.choice import spoken

_CATALOGUES = (
    "arguments", "cli", "report", "folders", "files", "processes", "data", "records", "weights", "conversion", "checkpoint",
    "use", "train", "lora", "adapters",
)  # fmt: skip
_MOST = 4000  # characters of a sentence that is looked up; longer ones are nobody's
_DEPTH = 6  # of sentences within sentences
_LEAST = 9  # characters outside the holes; a shorter template would be found in anything, and is for `fill` alone
_BETWEEN = re.compile("(; or | or | and | with |, )")  # `7B or auto`, `TP 2 with SP true`
_JOINTS = {"; or ": "；或 ", " or ": " 或 ", " and ": " 和 ", " with ": " 且 ", ", ": ", "}
_VALUE = re.compile(r"[^ ]+|[A-Z_]+ [^ ]+|--[a-z-]+ [^ ]+")
_KEY = 5  # characters at a template's beginning or end by which it is looked up
_MOST_PARTS = 12  # of a list of sentences; longer ones are nobody's
_NUMBER = re.compile(r"[0-9][0-9,]*(?:\.[0-9]+)?")  # in `3 bad records`, `line 3`
_BEHIND = re.compile(r"([^()]*) \((.+)\)", re.DOTALL)  # `7B (for example)`


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


def columns(text: str) -> int:
    """How many columns of a terminal a text takes: Chinese characters take two."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


@functools.cache
def catalogue() -> dict[str, str]:
    """All templates of Chinese, by those of English."""
    parts = (importlib.import_module(f"megatron_patch.language.zh_{name}").SENTENCES for name in _CATALOGUES)
    return {english: chinese for part in parts for english, chinese in part.items()}


def _translated(text: str, depth: int) -> str:
    """A sentence; several in a row, or phrases, each with a template of its own; or unchanged."""
    bare = text.strip()
    if not depth or len(text) > _MOST or " " not in bare:
        return text
    template, values = find(text)
    # Several sentences, unless one of them is known only together with those before it.
    if template is None:  # the same behind a name
        values = find(text.partition(": ")[2])[1]
    several = (template or "{}").startswith("{}") and any("; " in value for value in values)
    if several and (said := _of_parts(text, "; ", "；", depth, some=False)) != text:
        return said
    if (said := _one(text, depth)) != text:
        return said
    if bare != text:  # an indented line
        return text.replace(bare, _translated(bare, depth), 1)
    for joint, chinese in (("; ", "；"), (", ", "、"), (". ", ""), (" and ", "和")):
        if joint in text and (said := _of_parts(text, joint, chinese, depth, some=joint == "; ")) != text:
            return said
    return text


def _of_parts(text: str, joint: str, chinese: str, depth: int, *, some: bool) -> str:
    """Sentences or phrases in a row, if all of them are known, or `some`. A sentence may have the joint inside it."""
    parts = text.split(joint)
    if joint == ". ":
        parts = [f"{part}." for part in parts[:-1]] + parts[-1:]
    if len(parts) > _MOST_PARTS:
        return text
    said, unknown, known = "", 0, 0
    while parts:
        one, new, count = _known(parts, joint if joint != ". " else " ", depth, begun=bool(said))
        known += new != one
        unknown += new == one and " " in one  # a name alone stays as it is
        said += new if not said or one.startswith(joint) else chinese + new
        del parts[:count]
    return said if known and (some or not unknown) else text


def _known(parts: list[str], joint: str, depth: int, begun: bool) -> tuple[str, str, int]:
    """The first of `parts` that are a sentence together: (it, its Chinese, how many); else the first one, unchanged.

    Of several numbers of parts that would do, that counts whose template has the largest share of the words.

    begun: there are parts before them, so that the joint itself may begin a phrase.
    """
    best, share = (parts[0], parts[0], 1), -1.0
    for count in range(1, len(parts) + 1):
        text = joint.join(parts[:count])
        if begun and (find(joint + text)[0] or "").startswith(joint):
            text = joint + text
        if (new := _one(text, depth)) != text:
            template = max((find(one)[0] or "" for one in (text, text.partition(": ")[2])), key=len)
            if (part := len(template) / len(text)) > share:
                best, share = (text, new, count), part
    return best


def _one(text: str, depth: int) -> str:
    """One sentence or phrase, also behind the name of its file, or as an addition in brackets."""
    template, values = find(text)
    name, joint, rest = text.partition(": ")
    inner = find(rest)[0] if joint else None
    # Where the first hole has taken the file's name, it stands before the sentence.
    named = bool(values) and inner is not None and values[0].startswith(name + joint)
    named = named and (len(inner or "") > len(template or "") or (inner == template and find(values[0])[0] is None))
    if template is not None and not named:
        return catalogue()[template].format(*(_translated(value, depth - 1) for value in values))
    if numbers := _NUMBER.findall(text):
        kind = _NUMBER.sub("{}", text)
        if counter := catalogue().get(kind) or catalogue().get(kind.removesuffix("s")):
            return counter.format(*numbers)
    between = _BETWEEN.split(text)
    if all(map(_VALUE.fullmatch, between[::2])):
        return "".join(_JOINTS.get(one, one) for one in between)
    if not depth:
        return text
    if (found := _BEHIND.fullmatch(text)) and (said := _one(found[2], 0)) != found[2]:
        return f"{_one(found[1], 0)}（{said}）"
    return f"{_one(name, 0)}：{_one(rest, depth - 1)}" if inner is not None else text


def find(text: str) -> tuple[str | None, tuple[str, ...]]:
    """(the template from which `text` was made, the texts in its holes). Of several the one with most words counts."""
    best: tuple[str | None, tuple[str, ...]] = (None, ())
    length = 0
    shapes = _shapes()
    for group in (shapes.get(("^", text[:_KEY]), ()), shapes.get(("$", text[-_KEY:]), ()), shapes["", ""]):
        for template, words, longest, literals in group:
            if longest in text and words > length and _stand_in(text, literals):
                match = _pattern(template).fullmatch(text)
                if match:
                    best, length = (template, match.groups()), words
    return best


@functools.cache
def _shapes() -> dict[tuple[str, str], list[tuple[str, int, str, tuple[str, ...]]]]:
    """Where a template is looked up → (it, characters outside its holes, the longest text between them, all) of each.

    That is its beginning, or its end where a hole stands near the beginning. Templates with holes near both are under
    ("", ""), and those too short to be told are nowhere.
    """
    found: dict[tuple[str, str], list[tuple[str, int, str, tuple[str, ...]]]] = {("", ""): []}
    for template in catalogue():
        texts = tuple(_literals(template))
        size, first, last = sum(map(len, texts)), texts[0], texts[-1]
        place = ("^", first[:_KEY]) if len(first) >= _KEY else ("$", last[-_KEY:]) if len(last) >= _KEY else ("", "")
        if size >= _LEAST:
            found.setdefault(place, []).append((template, size, max(texts, key=len), texts))
    return found


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
