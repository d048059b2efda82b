"""Which Python runs: the one that make makes its environment of, and the one that a script starts."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.launching import ROOT, environment

PRETRAIN = "examples/llama2/run_pretrain_megatron_llama.sh"
CHOOSE = ROOT / "tools" / "choose_python.sh"


def fake(path: Path, version: str) -> Path:
    """An interpreter that says whether it is supported, its version, or the words that it is started with."""
    supported = version in ("3.11", "3.12", "3.13")
    path.parent.mkdir(parents=True, exist_ok=True)
    answers = f'-c) exit {int(not supported)} ;;\n-V) echo "Python {version}.0" ;;\n*) echo "{path} $*" ;;'
    path.write_text(f"#!/bin/sh\ncase $1 in\n{answers}\nesac\n")
    path.chmod(0o755)
    return path


def choose(folder: Path, *named: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["/bin/sh", str(CHOOSE), *named], env={"PATH": str(folder)}, capture_output=True, text=True, timeout=20)


@pytest.mark.parametrize(
    "there, taken",
    [
        ({"python3": "3.11", "python3.13": "3.13"}, "python3"),
        ({"python3": "3.14", "python3.13": "3.13", "python3.12": "3.12"}, "python3.13"),
        ({"python3": "3.10", "python3.12": "3.12", "python3.11": "3.11"}, "python3.12"),
        # pyenv has a python3.13 that says only that it is not switched on.
        ({"python3": "3.14", "python3.13": "none", "python3.11": "3.11"}, "python3.11"),
    ],
)
def test_make_takes_python3_or_the_newest_that_is_supported(there, taken, tmp_path):
    for name, version in there.items():
        fake(tmp_path / name, version)
    result = choose(tmp_path)
    assert result.returncode == 0 and result.stdout.strip() == str(tmp_path / taken)


def test_make_takes_what_is_named(tmp_path):
    fake(tmp_path / "python3", "3.11")
    named = fake(tmp_path / "other" / "python", "3.12")
    assert choose(tmp_path, str(named)).stdout.strip() == str(named)
    refused = choose(tmp_path, str(fake(tmp_path / "other" / "newer", "3.14")))
    assert refused.returncode == 2 and "here is Python 3.14.0" in refused.stderr


@pytest.mark.parametrize("there, here", [({"python3": "3.14"}, "Python 3.14.0"), ({}, "no python3")])
def test_where_none_is_supported_make_says_what_to_install(there, here, tmp_path):
    for name, version in there.items():
        fake(tmp_path / name, version)
    result = choose(tmp_path)
    assert result.returncode == 2 and not result.stdout
    assert f"Python 3.11, 3.12 or 3.13 is needed; here is {here}." in result.stderr
    assert "apt-get install python3 python3-venv" in result.stderr and "uv python install 3.13" in result.stderr


@pytest.mark.skipif(shutil.which("make") is None, reason="no make")
@pytest.mark.parametrize("words, index", [((), False), (("CPU=1",), True)], ids=["CUDA", "CPU"])
def test_the_cpu_build_comes_from_pytorch_s_index_alone(words, index, tmp_path):
    command = ["make", "-n", f"VENV={tmp_path}/venv", "demo", *words]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    (install,) = (line for line in said.splitlines() if "pip install" in line and "torch==" in line)
    assert ("--index-url 'https://download.pytorch.org/whl/cpu'" in install) is index
    assert said.count("--index-url") == index, "this project itself comes from PyPI"


@pytest.fixture
def checkout(tmp_path) -> Path:
    """A checkout of the scripts alone, with an environment of its own."""
    folder = tmp_path / "check out"
    for name in (PRETRAIN, "megatron_patch/launch.sh"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    fake(folder / ".venv" / "bin" / "python", "3.11")
    return folder


@pytest.mark.parametrize("named", ["nothing", "PYTHON", "VIRTUAL_ENV"])
def test_a_script_starts_the_checkout_s_own_python_where_none_is_named(named, checkout, tmp_path):
    others = fake(tmp_path / "bin" / "python3", "3.12")
    values = {name: value for name, value in environment().items() if name not in ("PYTHON", "VIRTUAL_ENV")}
    values["PATH"] = f"{others.parent}:{values['PATH']}"
    if named != "nothing":
        values[named] = str(others if named == "PYTHON" else tmp_path)
    words = ["sh", str(checkout / PRETRAIN), *["x"] * 24]
    said = subprocess.run(words, env=values, capture_output=True, text=True, check=True, timeout=60).stdout
    started = checkout / ".venv" / "bin" / "python" if named == "nothing" else others
    assert said.startswith(f"{started} -m megatron_patch.launch pretrain --env=x")
