"""The project's docstrings and comments, read from the sources without running them."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
Function = ast.FunctionDef | ast.AsyncFunctionDef


def sources(*folders: str, root: Path = ROOT) -> list[Path]:
    """Every Python file below these folders of a checkout."""
    return sorted(path for folder in folders for path in (root / folder).rglob("*.py"))


def comments(text: str) -> dict[int, str]:
    """Line → comment for readers. Comments for tools (`type:`, `noqa`, `fmt:`) are left out."""
    found = {}
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT and not re.match(r"#\s*(type:|noqa|fmt:|!)", token.string):
            found[token.start[0]] = token.string
    return found


def docstrings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """(line, text) of the docstring of every module, class and function."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, *_FUNCTIONS)) and (text := ast.get_docstring(node)):
            yield node.body[0].lineno, text


def docstring_lines(tree: ast.Module) -> set[int]:
    """The numbers of all lines that docstrings take."""
    lines: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            lines.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return lines


def long_lines(text: str, tree: ast.Module, most: int) -> list[int]:
    """The numbers of the lines of prose, docstrings and comments for readers, that have more than `most` characters."""
    found = {number: line for number, line in enumerate(text.splitlines(), 1) if len(line) > most}
    prose = docstring_lines(tree) if found else set()
    if any("#" in line for line in found.values()):  # to find comments takes longer than all the rest
        prose |= set(comments(text))
    return sorted(prose.intersection(found))


def public(tree: ast.Module) -> Iterator[ast.ClassDef | Function]:
    """Public classes, functions and methods. What is inside a function or a private class is not public.

    A method without a docstring is left out if another class of the module documents one of its name: it does what that
    one says.
    """
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    methods = [(node, method) for node in classes for method in node.body if isinstance(method, _FUNCTIONS)]
    explained = {method.name for _, method in methods if ast.get_docstring(method)}
    for node in tree.body:
        if isinstance(node, (ast.ClassDef, *_FUNCTIONS)) and not node.name.startswith("_"):
            yield node
    for node, method in methods:
        is_explained = method.name in explained and not ast.get_docstring(method)
        if not node.name.startswith("_") and not method.name.startswith("_") and not is_explained:
            yield method


def undocumented(tree: ast.Module) -> Iterator[str]:
    """Names of public things without a docstring, "the module" among them. An empty module needs none."""
    if tree.body and not ast.get_docstring(tree):
        yield "the module"
    yield from (node.name for node in public(tree) if not ast.get_docstring(node))


def unsaid_errors(tree: ast.Module) -> Iterator[str]:
    """`function: Error` for each exception that a public function raises and does not name behind `Raises:`."""
    for node in public(tree):
        if isinstance(node, _FUNCTIONS):
            _, _, said = (ast.get_docstring(node) or "").partition("Raises:")
            yield from (f"{node.name}: {name}" for name in sorted(_raised(node)) if not re.search(rf"\b{name}\b", said))


def _raised(function: Function) -> set[str]:
    """Names of the exceptions that a function's body raises and does not catch by name. A function inside it counts
    too."""
    found = set()
    tried = {id(inner): node for node in ast.walk(function) if isinstance(node, ast.Try) for inner in _raises(node.body)}
    for node in _raises(function.body):
        if isinstance(node.exc, ast.Call) and isinstance(node.exc.func, ast.Name):
            name, around = node.exc.func.id, tried.get(id(node))
            caught = ast.unparse([handler.type for handler in around.handlers if handler.type]) if around else ""
            found |= set() if re.search(rf"\b{name}\b", caught) else {name}
    return found


def _raises(body: list[ast.stmt]) -> Iterator[ast.Raise]:
    """All `raise` statements in `body`, at every depth."""
    return (node for statement in body for node in ast.walk(statement) if isinstance(node, ast.Raise))


def cut_paragraphs(text: str) -> Iterator[str]:
    """Paragraphs of a docstring that end without punctuation, as one does that was cut. Indented ones are tables."""
    for paragraph in re.split(r"\n\s*\n", text):
        lines = paragraph.splitlines()
        if not re.search(r"[.:?!…)\]`\"”⟧|]$", lines[-1]) and not (len(lines[0]) > len(lines[0].lstrip())):
            yield paragraph
