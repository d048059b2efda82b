"""ARCHITECTURE.md's picture is true: imports point one way, in no circle, and a usage error needs no torch."""

from __future__ import annotations

import ast
import re
import subprocess
import sys

import pytest

from tests.import_graph import PACKAGE, ROOT, ROWS, arrows_back, circles, graph, modules, names_imported, room

# No module of these rooms imports torch, directly or through others: the launcher and the command lines need them.
TORCH_FREE_ROOMS = ("errors", "language", "llama", "records", "data_paths", "config", "folders", "plan", "arguments", "report",
                    "launch")  # fmt: skip
TORCH_FREE_MODULES = ("megatron_patch.cli.convert", "megatron_patch.cli.preprocess", "megatron_patch.cli.report")


def test_imports_point_one_way():
    assert arrows_back(graph()) == []


def test_no_module_imports_itself_by_way_of_others():
    assert circles(graph()) == []


@pytest.mark.parametrize(
    "edges, found",
    [
        ({"megatron_patch.core.a": {"megatron_patch.train.b"}, "megatron_patch.train.b": set()}, 1),
        ({"megatron_patch.data.a": {"megatron_patch.model.b"}, "megatron_patch.model.b": set()}, 1),
        ({"megatron_patch.attic.a": set()}, 1),
        ({"megatron_patch.train.a": {"megatron_patch.core.b"}, "megatron_patch.core.b": set()}, 0),
    ],
    ids=["an arrow up", "an arrow to a neighbour", "a room in no row", "an arrow down"],
)
def test_what_an_arrow_back_is(edges, found):
    assert len(arrows_back(edges)) == found


def test_what_a_circle_is():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]


def test_the_picture_names_every_room():
    picture = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8").split("## Rooms")[1].split("##")[0]
    rooms = {room(module) for module in modules() if module != PACKAGE}
    absent = [name for name in rooms if not re.search(rf"\b{name}(/|\.py)", picture)]
    assert not absent and {name for row in ROWS for name in row} == rooms


def test_kernels_and_formats_know_no_megatron():
    for module, path in modules().items():
        if room(module) in ("kernels", "formats"):
            assert not any(name.split(".")[0] == "megatron" for name in names_imported(path)), path


def test_nothing_imports_scripts_examples_or_tests():
    for path in modules().values():
        assert not {name.split(".")[0] for name in names_imported(path)} & {"tests", "examples", "toolkits", "benchmarks"}, path


def test_no_module_is_named_as_one_of_python_s_own():
    """`python megatron_patch/cli/x.py` puts its folder first on the path; an `inspect.py` there would hide Python's."""
    for module, path in modules().items():
        assert path.stem == "__init__" or path.stem not in sys.stdlib_module_names, module


def test_usage_errors_need_no_torch():
    names = [name for name in modules() if room(name) in TORCH_FREE_ROOMS] + list(TORCH_FREE_MODULES)
    code = f"import sys, {', '.join(names)}\nsys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_who_reads_another_format_imports_none_of_torch_s_checkpoint_classes():
    """They bring a second and more of imports; a Hugging Face folder needs none of them."""
    names = [
        f"megatron_patch.{name}"
        for name in ("generate.asking", "evaluate.scoring", "conversion.convert", "inspection.checkpoint")
    ]
    code = f"import sys, {', '.join(names)}\nsys.exit('torch.distributed.checkpoint' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_ranks_that_write_no_curves_import_nothing_that_does():
    """core asks for both, for types alone; TensorBoard takes a third of a second."""
    loop = "import sys, megatron_patch.train.setup, megatron_patch.train.loop"
    code = loop + "\nsys.exit(bool({'tensorboard', 'wandb'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_whoever_imports_megatron_core_decides_the_device_first():
    for path in modules().values():
        if path.name == "cpu_redirection.py":
            continue
        body = ast.parse(path.read_text(encoding="utf-8")).body
        tops = [node for node in body if isinstance(node, (ast.Import, ast.ImportFrom))]
        names = [node.names[0].name if isinstance(node, ast.Import) else node.module for node in tops]
        core = [place for place, name in enumerate(names) if name and name.startswith("megatron.")]
        if core:
            assert "megatron_patch.core.device" in names[: core[0]], path
