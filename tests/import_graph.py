"""The project's imports as a graph, read from the sources without running them."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "megatron_patch"

# From the bottom up. A room may import from every row below its own, and from no other room of its own row.
ROWS: tuple[tuple[str, ...], ...] = (
    ("errors", "language"),
    ("formats", "kernels", "processes"),
    ("llama", "records"),
    ("data_paths",),
    ("config",),
    ("folders", "plan"),
    ("core", "sinks"),
    ("arguments", "model", "data", "weights"),
    ("preparation", "checkpoint", "generate", "report"),
    ("conversion", "train", "inspection", "evaluate"),
    ("cli", "launch", "torchrun"),
)


def modules(root: Path = ROOT) -> dict[str, Path]:
    """Full name → file of every module of the package."""
    found = {}
    for path in sorted((root / PACKAGE).rglob("*.py")):
        name = ".".join(path.relative_to(root).with_suffix("").parts)
        found[name.removesuffix(".__init__")] = path
    return found


def names_imported(path: Path) -> Iterator[str]:
    """Full names of everything that a file imports anywhere: `a.b` for `import a.b`, `a` and `a.b` for `from a import
    b`.

    An import under `if TYPE_CHECKING` counts too: whoever reads the file must know that module as well.
    """
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def graph(root: Path = ROOT) -> dict[str, set[str]]:
    """Each module of the package → the modules of the package that it imports."""
    known = modules(root)
    edges = {}
    for name, path in known.items():
        found = {target for target in names_imported(path) if target in known and target not in (name, PACKAGE)}
        # `from a.b import c` names the package a.b as well. That counts only if c is not a module.
        edges[name] = {target for target in found if not any(other.startswith(target + ".") for other in found)}
    return edges


def room(module: str) -> str:
    """`core` of `megatron_patch.core.device`; a module at the top is a room of its own."""
    return module.split(".")[1] if "." in module else module


def circles(edges: Mapping[str, set[str]]) -> list[list[str]]:
    """Groups of modules that import each other, directly or through others (Tarjan's strongly connected components)."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(module: str) -> None:
        order[module] = low[module] = len(order)
        stack.append(module)
        for target in edges.get(module, ()):
            if target not in order:
                visit(target)
                low[module] = min(low[module], low[target])
            elif target in stack:
                low[module] = min(low[module], order[target])
        if low[module] == order[module]:
            group = stack[stack.index(module) :]
            del stack[stack.index(module) :]
            if len(group) > 1:
                found.append(sorted(group))

    for module in edges:
        if module not in order:
            visit(module)
    return found


def arrows_back(edges: Mapping[str, set[str]]) -> list[str]:
    """Imports of a room of the same row or of a higher one, and modules whose room stands in no row."""
    height = {name: place for place, row in enumerate(ROWS) for name in row}
    wrong = [f"{module} stands in no row" for module in edges if module != PACKAGE and room(module) not in height]
    for module, targets in edges.items():
        for target in targets:
            here, there = room(module), room(target)
            if module != PACKAGE and here != there and height.get(there, -1) >= height.get(here, -1):
                wrong.append(f"{module} imports {target}")
    return sorted(wrong)
