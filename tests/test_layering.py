"""Imports point one way, and the modules that a usage error needs import no torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

from tests.launching import ROOT

PACKAGE = ROOT / "megatron_patch"
# What each room may look into, besides itself and the torch-free modules at the top.
ROOMS = {
    "kernels": set(),
    "core": {"kernels"},
    "model": {"kernels", "core"},
    "data": {"kernels", "core"},
    "checkpoint": {"kernels", "core", "model", "data"},
    "train": {"kernels", "core", "model", "data", "checkpoint"},
    "cli": {"kernels", "core", "model", "data", "checkpoint", "train"},
}
TORCH_FREE = (
    "megatron_patch.launch",
    "megatron_patch.train_arguments",
    "megatron_patch.checkpoint.layout",
    "megatron_patch.checkpoint.own_run",
    "megatron_patch.cli.convert",
    "megatron_patch.cli.preprocess",
)


def imported(path: Path) -> set[str]:
    """Full names of this project's modules that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        # A single dot stays in the room.
        assert not (isinstance(node, ast.ImportFrom) and node.level > 1), f"{path}: write imports of other rooms in full"
    return found


def test_rooms_look_one_way():
    wrong = []
    for room, allowed in ROOMS.items():
        for path in (PACKAGE / room).rglob("*.py"):
            for name in imported(path):
                parts = name.split(".")
                if parts[0] == "megatron_patch" and len(parts) > 1 and parts[1] in ROOMS and parts[1] not in allowed | {room}:
                    wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not wrong, wrong


def test_kernels_know_no_megatron():
    for path in (PACKAGE / "kernels").rglob("*.py"):
        assert not any(name.split(".")[0] == "megatron" for name in imported(path)), path


def test_nothing_imports_scripts_examples_or_tests():
    for path in PACKAGE.rglob("*.py"):
        assert not imported(path) & {"tests", "examples", "toolkits", "benchmarks"}, path


def test_usage_errors_need_no_torch():
    code = f"import sys, {', '.join(TORCH_FREE)}\nsys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_whoever_imports_megatron_core_decides_the_device_first():
    for path in PACKAGE.rglob("*.py"):
        if path.name == "cpu_redirection.py":
            continue
        body = ast.parse(path.read_text(encoding="utf-8")).body
        tops = [node for node in body if isinstance(node, (ast.Import, ast.ImportFrom))]
        names = [node.names[0].name if isinstance(node, ast.Import) else node.module for node in tops]
        core = [place for place, name in enumerate(names) if name and name.startswith("megatron.")]
        if core:
            assert "megatron_patch.core.device" in names[: core[0]], path
