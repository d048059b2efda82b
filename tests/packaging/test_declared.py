"""What the package imports is what pyproject.toml declares, and what stands in several places says one thing."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib

from megatron_patch.folders.engine import SUPPORTED
from tests.import_graph import ROOT, modules, names_imported

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# Imports under another name than the distribution's.
DISTRIBUTIONS = {"megatron": "megatron-core", "flash_attn": "flash-attn-4", "yaml": "pyyaml", "mlflow": "mlflow-skinny",
                 "google": "protobuf"}  # fmt: skip
# torch brings filelock, and triton where there are GPUs, which is looked for before it is imported. PAI-DLC's client
# brings tea and the credentials' package, tensorboard protobuf, and uvicorn h11.
BROUGHT_BY_OTHERS = {"triton", "filelock", "tea", "alibabacloud-credentials", "protobuf", "h11"}
# torch.utils.tensorboard, which the log imports, needs it and does not bring it.
NEEDED_BY_OTHERS = {"tensorboard"}


def names(requirements: list[str]) -> set[str]:
    return {re.split(r"[\[<>=;! ]", one)[0].lower() for one in requirements}


def imported(paths) -> set[str]:
    """Distributions that these files import, but for Python's own and this project's."""
    tops = {name.split(".")[0] for path in paths for name in names_imported(path)}
    own = {"megatron_patch", "tests", "examples", "benchmarks", "tools"}
    return {DISTRIBUTIONS.get(top, top).replace("_", "-").lower() for top in tops - sys.stdlib_module_names - own}


def test_declared_is_imported():
    declared, extras = names(PROJECT["dependencies"]), PROJECT["optional-dependencies"]
    found = imported(modules().values()) - BROUGHT_BY_OTHERS
    used = ("hf", "flash", "serve", "parquet", "wandb", "swanlab", "mlflow")
    optional = names([one for extra in used for one in extras[extra]])
    assert found | NEEDED_BY_OTHERS == declared | (found & optional), "pyproject.toml and the imports differ"


def test_tests_and_demo_import_what_their_extras_bring():
    # Tests of the last two are skipped by name where these are not installed.
    always = names(PROJECT["dependencies"]) | BROUGHT_BY_OTHERS | {"swanlab", "mlflow-skinny"}
    for extra, paths in (("demo", (ROOT / "examples").glob("*.py")), ("test", (ROOT / "tests").rglob("*.py"))):
        assert imported(paths) - always <= names(PROJECT["optional-dependencies"][extra]), extra


def test_the_scripts_look_for_what_is_declared():
    """But for what only some systems have, without which everything works."""
    text = (ROOT / "megatron_patch" / "launch.sh").read_text(encoding="utf-8")
    listed = ast.literal_eval(re.search(r"^names = (\(.*?\))$", text, re.MULTILINE | re.DOTALL)[1])
    everywhere = [one for one in PROJECT["dependencies"] if ";" not in one]
    assert {DISTRIBUTIONS.get(name, name) for name in listed} == names(everywhere)


def test_the_range_of_cores_is_one():
    (core,) = (one for one in PROJECT["dependencies"] if one.startswith("megatron-core"))
    low, high = re.fullmatch(r"megatron-core>=(\d+\.\d+)\.\d+,<(\d+\.\d+)", core).groups()
    assert tuple(tuple(map(int, bound.split("."))) for bound in (low, high)) == SUPPORTED


def test_the_range_of_pythons_is_one():
    """pyproject.toml, its classifiers, make's choice and the scripts' check."""
    low, high = map(int, re.fullmatch(r">=3\.(\d+),<3\.(\d+)", PROJECT["requires-python"]).groups())
    minors = [int(found[1]) for one in PROJECT["classifiers"] if (found := re.search(r":: 3\.(\d+)$", one))]
    assert minors == list(range(low, high))
    for path in ("tools/choose_python.sh", "megatron_patch/launch.sh"):
        assert f"(3, {low}) <= sys.version_info[:2] <= (3, {high - 1})" in (ROOT / path).read_text(encoding="utf-8"), path


def test_what_is_installed_is_in_the_declared_ranges():
    """pip's own word on the environment that the tests run in, about this project's requirements."""
    command = [sys.executable, "-m", "pip", "check"]
    said = subprocess.run(command, capture_output=True, text=True).stdout
    assert not [line for line in said.splitlines() if line.startswith("megatron-patch ")], said
    assert importlib.metadata.requires("megatron-patch")
