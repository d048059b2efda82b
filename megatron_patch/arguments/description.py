"""A script's list as text: `--help`, and tables in Markdown, in English and in Chinese. Imports no torch."""

from __future__ import annotations

import textwrap
from typing import Literal

from megatron_patch.arguments.argument import Argument, Script

Language = Literal["en", "zh"]

_WIDTH = 100
_TAKES = {
    "en": {
        "whole": "a whole number", "number": "a number", "choice": "one of {}", "boolean": "true or false", "path": "a path",
        "data": "a prefix, a blend of prefixes or a JSON file", "size": "a size such as 5GB or 500MB", "text": "a text",
        "paths": "one or more paths", "texts": "one or more texts", "only": "{}",
    },
    "zh": {
        "whole": "整数", "number": "数", "choice": "{} 之一", "boolean": "true 或 false", "path": "路径",
        "data": "前缀、多个前缀的混合，或 JSON 文件", "size": "大小，如 5GB、500MB", "text": "文本", "paths": "一个或多个路径",
        "texts": "一个或多个文本", "only": "{}",
    },
}  # fmt: skip
_HEADINGS = {
    "en": ("#", "name", "flag", "takes", "default", "meaning"),
    "zh": ("#", "名称", "标志", "取值", "默认", "含义"),
}


def takes(argument: Argument, language: Language = "en") -> str:
    """What the argument takes: its kind and range."""
    words = _TAKES[language]
    if argument.kind in ("whole", "number"):
        kind, bounds = words[argument.kind], _bounds(argument, language)
        return f"{kind} {bounds}" if language == "en" else f"{bounds} 的{kind}"
    kind = "only" if argument.kind == "text" and argument.choices else argument.kind
    return words[kind].format(", ".join(argument.choices))


def _bounds(argument: Argument, language: Language) -> str:
    one = argument.range
    if language == "zh":
        low = f"{'大于' if one.above else '不小于'} {_short(one.least)}"
        return low if one.most is None else f"{low} 且{'小于' if one.below else '不大于'} {_short(one.most)}"
    if one.most is None:
        return f"above {_short(one.least)}" if one.above else f"of at least {_short(one.least)}"
    return f"from {'above ' if one.above else ''}{_short(one.least)} to {'below ' if one.below else ''}{_short(one.most)}"


def _short(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"


def default_text(argument: Argument) -> str:
    """The default as it would be typed; empty where there is none, or where it is an empty text."""
    value = argument.default
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return " ".join(value)
    if argument.kind == "size" and isinstance(value, int) and value % 10**9 == 0:
        return f"{value // 10**9}GB"
    return _short(value) if isinstance(value, (int, float)) else str(value)


def help_text(script: Script) -> str:
    """What `--help` prints: every documented argument and every flag, with what it takes, its default and its meaning."""
    lines = [f"{script.name}: {script.en}", script.zh, ""]
    if script.documented:
        lines += ["Arguments, in this order; a script hands each on as the flag behind its name:", ""]
        heads = [f"{argument.label} {argument.flag}".strip() for argument in script.documented]
        lines += [line for argument, head in zip(script.documented, heads) for line in _entry(argument, head)]
    lines += ["", "Flags, after the last argument; one of true or false that stands alone is true:", ""]
    lines += [line for argument in script.flags for line in _entry(argument, argument.flag)]
    return "\n".join([*lines, "  --help", "      Print this.", ""])


def _entry(argument: Argument, head: str) -> list[str]:
    default = default_text(argument)
    first = f"  {head}  {takes(argument)}" + (f"; default {default}" if default else "")
    meaning = textwrap.wrap(argument.en, _WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6, break_on_hyphens=False)
    return [first, *meaning, f"      {argument.zh}"]


def markdown(script: Script, language: Language = "en") -> str:
    """The list as a section with one table for the documented arguments and one for the flags."""
    parts = [f"## {script.name}", script.en if language == "en" else script.zh]
    parts += [_table(arguments, language) for arguments in (script.documented, script.flags) if arguments]
    return "\n\n".join(parts) + "\n"


def _table(arguments: tuple[Argument, ...], language: Language) -> str:
    # A flag has no number, and its name is the flag.
    skipped = 0 if any(argument.number for argument in arguments) else 2
    headings = _HEADINGS[language][skipped:]
    rows = [headings, tuple("---" for _ in headings)]
    for one in arguments:
        meaning = one.en if language == "en" else one.zh
        cells = (str(one.number), one.name, f"`{one.flag or one.name}`", takes(one, language), default_text(one), meaning)
        rows.append(cells[skipped:])
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)
