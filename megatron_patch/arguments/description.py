"""A script's list as text: `--help`, and tables in Markdown, in English and in Chinese. Imports no torch."""

from __future__ import annotations

import textwrap

from megatron_patch.arguments.argument import Argument, Script
from megatron_patch.language.choice import Language, spoken

_WIDTH = 100
_TAKES = {
    "en": {
        "whole": "a whole number", "number": "a number", "choice": "one of {}", "boolean": "true or false", "path": "a path",
        "data": "a prefix, a blend of prefixes or JSON files", "json": "a JSON file, or several in one argument",
        "size": "a size such as 5GB or 500MB", "text": "a text",
        "paths": "one or more paths", "texts": "one or more texts", "only": "{}",
    },
    "zh": {
        "whole": "整数", "number": "数", "choice": "{} 之一", "boolean": "true 或 false", "path": "路径",
        "data": "前缀、多个前缀的混合，或 JSON 文件", "json": "一个 JSON 文件，或写在一个参数中的多个",
        "size": "大小，如 5GB、500MB", "text": "文本", "paths": "一个或多个路径",
        "texts": "一个或多个文本", "only": "{}",
    },
}  # fmt: skip
_HEADINGS = {
    "en": ("#", "name", "flag", "takes", "default", "meaning"),
    "zh": ("#", "名称", "标志", "取值", "默认", "含义"),
}

_HELP = {
    "en": {
        "arguments": "Arguments, in this order; a script hands each on as the flag behind its name:",
        "flags": "Flags, after the last argument; one of true or false that stands alone is true:",
        "language": "Language of what is said; without it, that of the locale (LC_ALL, LC_MESSAGES, LANG).",
        "help": "Print this.",
        "default": "; default ",
    },
    "zh": {
        "arguments": "参数，按此顺序给出；脚本把每个参数作为名称后面的标志传给 Python：",
        "flags": "标志，写在最后一个参数之后；true/false 类标志单独出现即为 true：",
        "language": "提示信息的语言；不写则由 locale 决定（LC_ALL、LC_MESSAGES、LANG）。",
        "help": "显示本帮助。",
        "default": "；默认 ",
    },
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
    """What `--help` prints, in the user's language: each argument and flag with its range, default and meaning."""
    language = spoken()
    words = _HELP[language]
    lines = [f"{script.name}: {_meaning(script, language)}", ""]
    if script.documented:
        lines += [words["arguments"], ""]
        heads = [f"{argument.label} {argument.flag}".strip() for argument in script.documented]
        lines += [line for argument, head in zip(script.documented, heads) for line in _entry(argument, head, language)]
        lines.append("")
    lines += [words["flags"], ""]
    lines += [line for argument in script.flags for line in _entry(argument, argument.flag, language)]
    return "\n".join([*lines, "  --language en|zh", f"      {words['language']}", "  --help", f"      {words['help']}", ""])


def _meaning(one: Argument | Script, language: Language) -> str:
    return one.zh if language == "zh" else one.en


def _entry(argument: Argument, head: str, language: Language) -> list[str]:
    default = default_text(argument)
    first = f"  {head}  {takes(argument, language)}" + (_HELP[language]["default"] + default if default else "")
    indent = " " * 6
    # Chinese has no blanks to break at, and its lines are short.
    meaning = (
        [indent + argument.zh]
        if language == "zh"
        else textwrap.wrap(argument.en, _WIDTH, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)
    )
    return [first, *meaning]


def markdown(script: Script, language: Language = "en") -> str:
    """The list as a section with one table for the documented arguments and one for the flags."""
    parts = [f"## {script.name}", _meaning(script, language)]
    parts += [_table(arguments, language) for arguments in (script.documented, script.flags) if arguments]
    return "\n\n".join(parts) + "\n"


def _table(arguments: tuple[Argument, ...], language: Language) -> str:
    # A flag has no number, and its name is the flag.
    skipped = 0 if any(argument.number for argument in arguments) else 2
    headings = _HEADINGS[language][skipped:]
    rows = [headings, tuple("---" for _ in headings)]
    for one in arguments:
        meaning = (takes(one, language), default_text(one), _meaning(one, language))
        cells = (str(one.number), one.name, f"`{one.flag or one.name}`", *meaning)
        rows.append(cells[skipped:])
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)
