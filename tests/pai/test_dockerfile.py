"""The Dockerfile: linted, and its steps taken as far as can be without Docker: copies, installation, mount points."""

from __future__ import annotations

import fnmatch
import json
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.launching import ROOT
from tests.pai.job_files import BODIES, body


def instructions() -> list[tuple[str, str]]:
    """(instruction, its words) without comments, continued lines joined."""
    lines = [line for line in (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [(name, words.strip()) for name, _, words in (line.partition(" ") for line in joined.splitlines() if line.strip())]


def defaults() -> dict[str, str]:
    """The build arguments and their defaults."""
    return dict(words.split("=", 1) for name, words in instructions() if name == "ARG")


def sent(path: str) -> bool:
    """Whether Docker is sent a path, relative to the project: the last pattern of .dockerignore that fits decides."""
    kept = True
    for pattern in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines():
        if pattern.startswith("#") or not pattern:
            continue
        name = pattern.removeprefix("!")
        if name.startswith("**/"):
            fits = any(fnmatch.fnmatch(part, name[3:]) for part in Path(path).parts)
        else:
            fits = fnmatch.fnmatch(Path(path).parts[0], name)
        kept = pattern.startswith("!") if fits else kept
    return kept


@pytest.fixture(scope="module")
def image(tmp_path_factory) -> Path:
    """The image's /opt/PAI-Megatron-Patch: what the COPY steps copy of what Docker is sent."""
    folder = tmp_path_factory.mktemp("opt") / "PAI-Megatron-Patch"
    folder.mkdir()
    for words in (words for name, words in instructions() if name == "COPY"):
        *sources, target = words.split()
        for source in sources:
            assert sent(source), f".dockerignore keeps {source} back"
            if (ROOT / source).is_dir():
                left_out = shutil.ignore_patterns("__pycache__", "*.pyc")
                shutil.copytree(ROOT / source, folder / target, ignore=left_out)
            else:
                shutil.copy(ROOT / source, folder / target)
    return folder


def test_hadolint_finds_nothing():
    linter = Path(sysconfig.get_path("scripts")) / "hadolint"
    result = subprocess.run([linter, ROOT / "Dockerfile"], capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (0, "")


def test_docker_is_sent_what_is_copied_and_no_more():
    assert {path.name for path in ROOT.iterdir() if sent(path.name)} == {
        "LICENSE", "NOTICE", "README.md", "examples", "megatron_patch", "pyproject.toml", "setup.py", "toolkits",
    }  # fmt: skip
    assert sent("megatron_patch/launch.sh") and not sent("megatron_patch/core/__pycache__/device.cpython-311.pyc")


def test_the_extras_and_torch_are_the_project_s():
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    known = re.findall(r"^(\w+) = \[", project.split("[project.optional-dependencies]")[1].split("\n[")[0], re.MULTILINE)
    for extras in (defaults()["EXTRAS"], "demo,dlc,flash"):
        assert set(extras.split(",")) <= set(known)
    assert f"TORCH ?= {defaults()['TORCH']}\n" in (ROOT / "Makefile").read_text(encoding="utf-8")


def test_pip_installs_what_was_copied(image, tmp_path):
    """The image's last pip step, without the libraries it would fetch, into a plain folder; then a copied script."""
    (step,) = [words for name, words in instructions() if name == "RUN" and '".[$EXTRAS]"' in words]
    pip, *words = [word.replace("[$EXTRAS]", "") for word in shlex.split(step)]
    assert pip == "pip"
    plain = ["--no-deps", "--no-build-isolation", "--disable-pip-version-check", "-q", "--target", tmp_path / "installed"]
    subprocess.run([sys.executable, "-m", "pip", *words, *plain], cwd=image, check=True)
    installed = {path.relative_to(tmp_path / "installed") for path in (tmp_path / "installed" / "megatron_patch").rglob("*.*")}
    wanted = {path.relative_to(image) for path in (image / "megatron_patch").rglob("*.*") if path.suffix in (".py", ".sh")}
    assert wanted <= installed and len(wanted) > 100
    usage = subprocess.run(["sh", image / "examples/llama2/run_pretrain_megatron_llama.sh"], capture_output=True, text=True)
    assert usage.returncode == 2 and "ENV=$1" in usage.stderr


def test_the_mount_points_are_those_of_the_jobs(image):
    (step,) = [words for name, words in instructions() if name == "RUN" and words.startswith("mkdir")]
    made = set(re.search(r"mkdir -p (\S+ \S+)", step)[1].split())
    environment = dict(word.split("=") for name, words in instructions() if name == "ENV" for word in words.split())
    for name in BODIES:
        job = body(name)
        assert {source["MountPath"] for source in job["DataSources"]} == made
        assert {key: environment[key] for key in job["Envs"]} == job["Envs"]
    assert f"ln -s /opt/{image.name} {environment['WORK_DIR']}/{image.name}" in step, "the commands name this folder"
    assert json.loads(next(words for name, words in instructions() if name == "CMD")) == ["/bin/bash"]
