"""A cached function holds what it was asked with until the process ends, and a tensor's memory with it."""

from __future__ import annotations

import ast
from pathlib import Path

import megatron_patch

PACKAGE = Path(megatron_patch.__file__).parent
HELD_FOR_EVER = ("Tensor", "Parameter", "Module", "Any")


def _is_cache(decorator: ast.expr) -> bool:
    called = decorator.func if isinstance(decorator, ast.Call) else decorator
    name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
    return name in ("cache", "lru_cache")


def test_no_cached_function_takes_a_tensor():
    cached, holding = 0, []
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and any(map(_is_cache, node.decorator_list)):
                cached += 1
                asked = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                told = [ast.unparse(one.annotation) if one.annotation else "Any" for one in asked]
                if any(word in text for word in HELD_FOR_EVER for text in told):
                    holding.append(f"{path.relative_to(PACKAGE)}: {node.name}({', '.join(told)})")
    assert cached > 10 and holding == []
