"""Templates of sentences in the sources: literals that read as prose, with `{}` for an f-string's values."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

# Letters, a blank, letters or a hole: two words at least.
_PROSE = re.compile(r"[a-z0-9{}':;,)] [a-z{('-]")
# What is raised as one of these is a bug, whose traceback is English.
_BUGS = ("ValueError", "TypeError", "IndexError", "KeyError", "RuntimeError", "AssertionError", "NotImplementedError")
_CHINESE = re.compile("[\u4e00-\u9fff]")


def templates(path: Path) -> Iterator[tuple[int, str]]:
    """(line, template) of each literal of a module that reads as prose, but for docstrings and messages of assert."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    silent = set(_silent(tree))
    for node in ast.walk(tree):
        if node in silent:
            continue
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "counted" and len(node.args) == 2:
            yield node.lineno, f"{{}} {ast.literal_eval(node.args[1])}"
        text = _template(node)
        if text is not None and _PROSE.search(text) and not _CHINESE.search(text):
            yield node.lineno, text


def _silent(tree: ast.AST) -> Iterator[ast.AST]:
    """Docstrings, texts below fields, messages of assert and of bugs; parts of f-strings, read with the whole."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            yield node.value
        elif isinstance(node, ast.Assert) and node.msg is not None:
            yield from ast.walk(node.msg)
        elif isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and getattr(node.exc.func, "id", "") in _BUGS:
            yield from ast.walk(node.exc)
        elif isinstance(node, ast.JoinedStr):
            for part in node.values:
                yield part
                if isinstance(part, ast.FormattedValue) and part.format_spec is not None:
                    yield from ast.walk(part.format_spec)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "counted" and len(node.args) == 2:
            yield node.args[1]


def _template(node: ast.AST) -> str | None:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(
            part.value.replace("{", "{{").replace("}", "}}") if isinstance(part, ast.Constant) else "{}" for part in node.values
        )
    return None
