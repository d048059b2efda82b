"""The state of the house in a dozen figures: `python benchmarks/house.py [CHECKOUT]`, this checkout without an argument.

Files, lines, rooms, circles and arrows back of the imports, the longest functions, what ruff and mypy find. Nothing is run of the
checkout that is measured; for one from before the rooms, arrows back counts modules that stand in no row as well.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.import_graph import PACKAGE, arrows_back, circles, graph, modules, room


def lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def functions(path: Path) -> list[tuple[int, str]]:
    """(lines, file and name) of every function."""
    return [
        (node.end_lineno - node.lineno + 1, f"{path.name}:{node.lineno} {node.name}")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.end_lineno is not None
    ]


def findings(root: Path, *command: str) -> str:
    """The last line that a checker prints."""
    result = subprocess.run([sys.executable, "-m", *command], cwd=root, capture_output=True, text=True)
    said = (result.stdout + result.stderr).strip().splitlines()
    return said[-1] if said else "nothing"


def main(root: Path) -> None:
    known, edges = modules(root), graph(root)
    sizes: Counter[str] = Counter()
    for module, path in known.items():
        sizes[room(module)] += lines(path)
    total = sum(sizes.values())
    largest, most = sizes.most_common(1)[0]
    tests = sorted((root / "tests").rglob("*.py"))
    longest = sorted((one for path in known.values() for one in functions(path)), reverse=True)
    middle = sorted(size for size, _ in longest)[len(longest) // 2]
    print(f"{PACKAGE}: {len(known)} files, {total} lines; tests: {len(tests)} files, {sum(map(lines, tests))} lines")
    print(f"largest room: {largest}, {most} lines, {100 * most / total:.1f} %")
    print(f"circles: {len(circles(edges))}; arrows back: {len(arrows_back(edges))}")
    print(f"functions: median {middle} lines, longest {'; '.join(f'{size} {name}' for size, name in longest[:3])}")
    print(f"longest file: {max((lines(path), str(path.relative_to(root))) for path in known.values())}")
    print(f"ruff check: {findings(root, 'ruff', 'check', '.')}")
    print(f"ruff format: {findings(root, 'ruff', 'format', '--check', '.')}")
    print(f"mypy: {findings(root, 'mypy', PACKAGE)}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parents[1]).resolve())
