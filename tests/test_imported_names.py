"""Every name that tests, benchmarks, tools and examples import from this project is there.

Many of these imports stand inside functions and in workers of other processes. A rename would miss them, and they
would fail only where they are reached.
"""

from __future__ import annotations

import ast
import functools
from pathlib import Path

from tests.import_graph import ROOT
from tests.prose import sources

FOLDERS = ("megatron_patch", "tests", "benchmarks", "tools", "examples")
_NAMED = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


@functools.cache
def names_bound(path: Path) -> set[str]:
    """The names that a module binds anywhere. Those inside functions are too many, and cost nothing here."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, _NAMED):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names.update((alias.asname or alias.name).split(".")[0] for alias in node.names)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return names


def missing(path: Path, root: Path) -> list[str]:
    """Imports of a file from the project's folders that name a module, or a name in one, that does not exist."""
    wrong = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not (isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in FOLDERS):
            continue
        here = root.joinpath(*node.module.split("."))
        file = here.with_suffix(".py") if not here.is_dir() else here / "__init__.py"
        known = names_bound(file) if file.exists() else set()
        wrong += [
            f"{path.relative_to(root)}: {node.module}.{alias.name}"
            for alias in node.names
            if alias.name not in known and not (here / alias.name).is_dir() and not (here / f"{alias.name}.py").exists()
        ]
    return wrong


def test_imported_names_exist():
    assert [name for path in sources(*FOLDERS) for name in missing(path, ROOT)] == []


def test_a_name_that_went_is_found(tmp_path):
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "a.py").write_text("def kept():\n    from tests.b import c\n")
    worker = tmp_path / "tests" / "worker.py"
    worker.write_text("def work():\n    from tests.a import kept, moved\n    from tests import a\n")
    assert missing(worker, tmp_path) == ["tests/worker.py: tests.a.moved"]
    assert missing(tmp_path / "tests" / "a.py", tmp_path) == ["tests/a.py: tests.b.c"]
