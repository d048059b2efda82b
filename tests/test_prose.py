"""What every docstring and comment keeps to: it is there, it is whole, it names the errors, and its lines are short."""

from __future__ import annotations

import ast
import functools
from pathlib import Path

import pytest

from tests.prose import ROOT, cut_paragraphs, docstrings, long_lines, sources, undocumented, unsaid_errors

MOST = 120  # characters of a line of prose
PRODUCT = sources("megatron_patch", "benchmarks", "examples", "tools")
EVERYTHING = [*PRODUCT, *sources("tests"), ROOT / "setup.py"]


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


# A class, and another one whose method does what the first one's docstring says.
EXPLAINED = '''"""A."""
class P:
    """P."""
    def g(self):
        """G."""

class Q:
    """Q."""
    def g(self): pass
'''


def places(paths, find) -> list[str]:
    """`file: what` for everything that `find` gives for a file."""
    return [f"{path.relative_to(ROOT)}: {one}" for path in paths for one in find(path)]


def test_everything_public_has_a_docstring():
    assert places(PRODUCT, lambda path: undocumented(parsed(path))) == []


def test_a_docstring_names_what_its_function_raises():
    assert places(PRODUCT, lambda path: unsaid_errors(parsed(path))) == []


def test_no_docstring_is_cut():
    def cut(path: Path) -> list[str]:
        return [f"{line} …{part[-40:]}" for line, text in docstrings(parsed(path)) for part in cut_paragraphs(text)]

    assert places(EVERYTHING, cut) == []


def test_lines_of_prose_are_short():
    assert places(EVERYTHING, lambda path: long_lines(path.read_text(encoding="utf-8"), parsed(path), MOST)) == []


@pytest.mark.parametrize(
    "text, found",
    [
        ("def f(): pass", ["the module", "f"]),
        ('"""A."""\nclass A:\n    def g(self): pass', ["A", "g"]),
        ('"""A."""\nclass _A:\n    def g(self): pass\n\n\ndef _f(): pass', []),
        (EXPLAINED, []),
        ("", []),
    ],
    ids=["a function", "a class and its method", "private", "explained by another class", "empty"],
)
def test_what_lacks_a_docstring(text, found):
    assert list(undocumented(ast.parse(text))) == found


def test_what_an_unsaid_error_is():
    said = '"""F.\n\n    Raises:\n        KeyError: no.\n    """'
    body = "    raise KeyError(1)\n    raise UserError(1)\n    try:\n        raise OSError(1)\n    except OSError: pass"
    assert list(unsaid_errors(ast.parse(f"def f():\n    {said}\n{body}"))) == ["f: UserError"]


def test_what_a_cut_paragraph_is():
    assert list(cut_paragraphs("It begins\n\nand ends.\n\n    a table\n    1 2")) == ["It begins"]


def test_what_a_long_line_is():
    long = "x" * 20
    text = f'"""A\n{long}."""\n# {long}\nname = "{long}"\nx = 1  # {long}\ny = 1  # noqa: E501 {long}\n'
    assert long_lines(text, ast.parse(text), 15) == [2, 3, 5]
