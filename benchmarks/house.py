"""The state of the house in a dozen figures: `python benchmarks/house.py [CHECKOUT]`, by default of this checkout.

Files, lines and rooms; circles of imports and arrows back; the longest functions; comments and docstrings; what ruff
and mypy find. Nothing of the checkout that is measured is run. In one from before the rooms, modules that stand in no
row count as arrows back as well.
"""

from __future__ import annotations

import ast
import io
import subprocess
import sys
import tokenize
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.import_graph import PACKAGE, arrows_back, circles, graph, modules, room
from tests.prose import comments, docstring_lines, sources, undocumented, unsaid_errors

_NO_CODE = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)


def lines(path: Path) -> int:
    """The number of lines of a file."""
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


def prose(name: str, paths: Iterable[Path]) -> str:
    """A line about the prose of some files.

    Lines of code are not blank and hold more than a docstring or a comment. A comment beside code is a comment.
    """
    code = commented = documented = longest = 0
    lacking: list[str] = []
    for path in paths:
        text = path.read_text(encoding="utf-8")
        tree, all_lines = ast.parse(text), text.splitlines()
        in_docstrings = docstring_lines(tree)
        tokens = tokenize.generate_tokens(io.StringIO(text).readline)
        holding = {line for token in tokens if token.type not in _NO_CODE for line in range(token.start[0], token.end[0] + 1)}
        code += len(holding - in_docstrings)
        in_comments = comments(text)
        commented += len(in_comments)
        documented += len(in_docstrings)
        longest = max(longest, *(len(all_lines[line - 1]) for line in in_docstrings.union(in_comments)), 0)
        lacking += [*undocumented(tree), *unsaid_errors(tree)]
    per_hundred = f"{100 * commented / code:.1f} comments and {100 * documented / code:.1f} lines of docstrings"
    return (
        f"prose of {name}: {per_hundred} per 100 lines of code; longest line {longest}; "
        f"{len(lacking)} public things without a docstring or with an error that it does not name"
    )


def main(root: Path) -> None:
    """Print the figures of the checkout at `root`."""
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
    print(prose(PACKAGE, known.values()))
    print(prose(f"{PACKAGE}/kernels", sources(f"{PACKAGE}/kernels", root=root)))
    print(f"ruff check: {findings(root, 'ruff', 'check', '.')}")
    print(f"ruff format: {findings(root, 'ruff', 'format', '--check', '.')}")
    print(f"mypy: {findings(root, 'mypy', PACKAGE)}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parents[1]).resolve())
