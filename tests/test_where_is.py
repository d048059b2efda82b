"""ARCHITECTURE.md's table "Where is …": each file that it names has the name that it names."""

from __future__ import annotations

import ast
import re

import pytest

from tests.import_graph import PACKAGE, ROOT

_ROW = re.compile(r"^\| (.+\?) \| `([\w/]+\.py)` \| `(\w+)` \|$", re.MULTILINE)
ROWS = _ROW.findall((ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8"))


def defined(text: str) -> set[str]:
    """Names of the classes, functions and values that a module defines itself; what it imports is another's."""
    found: set[str] = set()
    for node in ast.parse(text).body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            found.add(node.name)
        for target in getattr(node, "targets", [getattr(node, "target", None)]):
            found |= {target.id} if isinstance(target, ast.Name) else set()
    return found


def test_there_are_twenty_questions():
    assert len(ROWS) == 20 == len({question for question, _, _ in ROWS})


@pytest.mark.parametrize("question, file, name", ROWS, ids=[file for _, file, _ in ROWS])
def test_the_file_has_the_answer(question, file, name):
    path = ROOT / PACKAGE / file
    assert path.is_file(), f"{question} {file} is gone; say in the table where the answer is now"
    assert name in defined(path.read_text(encoding="utf-8")), f"{question} {file} does not define {name}"
