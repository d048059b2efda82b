"""The sdist and the wheel: built without a network, installed elsewhere, and used from there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

from megatron_patch.cli.main import COMMANDS
from tests.launching import GOLDEN, ROOT, environment, unpack

LEFT_OUT = shutil.ignore_patterns(
    ".git", ".venv", ".matrix", ".demo", "__pycache__", "*.egg-info", "build", "dist", ".*_cache", ".hypothesis"
)
BUILD = "import sys; from setuptools import build_meta; print(getattr(build_meta, sys.argv[1])(sys.argv[2]))"
SCRIPTS = (
    "examples/llama2/run_pretrain_megatron_llama.sh",
    "examples/llama2/run_finetune_megatron_llama.sh",
    "examples/llama2/run_finetune_megatron_llama_withGA.sh",
    "examples/llama2/run_evaluate_megatron_llama.sh",
    "examples/llama2/run_text_generation_megatron_llama.sh",
    "toolkits/model_checkpoints_convertor/llama/model_convertor.sh",
    "toolkits/pretrain_data_preprocessing/run_make_pretraining_dataset.sh",
)


def build(what: str, source: Path, target: Path) -> Path:
    """What pip does, with the setuptools that is installed."""
    command = [sys.executable, "-c", BUILD, f"build_{what}", str(target)]
    result = subprocess.run(command, cwd=source, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": ""})
    assert result.returncode == 0, result.stderr[-3000:]
    return target / result.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def sdist(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sdist")
    checkout = shutil.copytree(ROOT, folder / "checkout", ignore=LEFT_OUT)
    return build("sdist", checkout, folder)


@pytest.fixture(scope="module")
def unpacked(sdist) -> Path:
    with tarfile.open(sdist) as archive:
        unpack(archive, sdist.parent / "unpacked")
    (folder,) = (sdist.parent / "unpacked").iterdir()
    return folder


@pytest.fixture(scope="module")
def wheel(unpacked) -> Path:
    """From the sdist, as pip builds it where no wheel is published."""
    return build("wheel", unpacked, unpacked.parent)


@pytest.fixture(scope="module")
def elsewhere(wheel, tmp_path_factory) -> Path:
    """A virtual environment with the wheel, and beside it, as a plain folder, the libraries of this one."""
    folder = tmp_path_factory.mktemp("elsewhere") / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python")]
    subprocess.run([*pip, "install", "-q", "--no-deps", "--no-index", str(wheel)], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    # A path alone: the .pth files in it, an editable install of this project among them, are not read.
    (site / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder


def call(folder: Path, *words: object, **more: str) -> str:
    """Output of a command with that environment's python, in a folder of its own; it must end well."""
    # No checkout may be found by way of the environment, and no port of a test of this process.
    lost = ("PYTHONPATH", "PYTHON", "VIRTUAL_ENV")
    values = {name: value for name, value in environment().items() if name not in lost}
    values |= {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", **more}
    both = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "timeout": 300}
    result = subprocess.run([str(word) for word in words], cwd=folder.parent, env=values, **both)
    assert result.returncode == 0, result.stdout[-4000:]
    return result.stdout


def test_the_sdist_has_what_a_checkout_has(unpacked):
    for name in ("LICENSE", "NOTICE", "Makefile", "README.md", "README_zh-CN.md", "tools/choose_python.sh", *SCRIPTS):
        assert (unpacked / name).read_bytes() == (ROOT / name).read_bytes(), name
    for folder in ("tests", "examples", "benchmarks"):
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                assert (unpacked / path.relative_to(ROOT)).is_file(), path
    assert not list(unpacked.rglob("__pycache__"))


def test_the_wheel_has_types_license_notice_and_scripts(wheel):
    with zipfile.ZipFile(wheel) as archive:
        found = archive.namelist()
        (license_file,) = (name for name in found if name.endswith(".dist-info/licenses/LICENSE"))
        text = archive.read(license_file).decode()
        (notice,) = (name for name in found if name.endswith(".dist-info/licenses/NOTICE"))
        assert "PAI-Megatron-Patch" in archive.read(notice).decode()
    assert "END OF TERMS AND CONDITIONS" in text and "APPENDIX: How to apply the Apache License" in text
    assert {"megatron_patch/py.typed", "megatron_patch/launch.sh", "megatron_patch/report/page/page.html"} <= set(found)
    for script in SCRIPTS:
        assert any(name.endswith(f".data/data/share/megatron-patch/{script}") for name in found), script
    tops = {name.split("/")[0] for name in found}
    assert tops == {"megatron_patch", *(top for top in tops if top.startswith("megatron_patch-"))}, "nothing else is installed"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_s_help_lists_documented_names_and_flags(command, elsewhere):
    said = call(elsewhere, elsewhere / "bin" / "megatron-patch", command, "--help")
    documented = {
        "pretrain": "$24 OUTPUT_BASEPATH --output-path", "finetune": "$21 EPOCH", "finetune-with-ga": "$23 TRAIN_ITERS",
        "convert": "$8 mg2hf --mg2hf",
    }  # fmt: skip
    assert documented.get(command, "") in said and "--help" in said and said.count("\n  --") > 2


def test_the_command_itself(elsewhere):
    command = elsewhere / "bin" / "megatron-patch"
    assert all(f"  {name} " in call(elsewhere, command, "--help") for name in COMMANDS)
    assert call(elsewhere, command, "--version").startswith("megatron-patch 0.")
    wrong = subprocess.run([command, "sing"], capture_output=True, text=True)
    assert wrong.returncode == 2 and "got 'sing'; write one of pretrain, finetune, finetune-with-ga, generate" in wrong.stderr


def test_a_conversion_and_two_iterations_from_there(elsewhere, tmp_path):
    command, model = elsewhere / "bin" / "megatron-patch", tmp_path / "model"
    said = call(
        elsewhere, command, "convert", f"--source={GOLDEN / 'hf_gqa'}", f"--target={model}", "--tensor-model-parallel-size=1",
        "--pipeline-model-parallel-size=1", "--model-name=auto", "--extra-vocab-size=0", "--mg2hf=false",
    )  # fmt: skip
    assert "The installed megatron-core" in said and f"Written: {model}" in said
    said = call(
        elsewhere, command, "pretrain", "--model-size=auto", "--micro-batch-size=1", "--global-batch-size=4", "--lr=1e-3",
        "--min-lr=1e-4", "--seq-length=32", "--max-padding-length=32", "--extra-vocab-size=0", "--precision=fp32",
        "--tensor-model-parallel-size=1", "--pipeline-model-parallel-size=1", "--activation-checkpoint=sel",
        "--use-distributed-optimizer=false", "--use-flash-attn=false", "--sequence-parallel=false", "--save-interval=2",
        f"--data-path={GOLDEN / 'data/corpus_text_document'}", f"--load={model}", f"--train-tokens={2 * 4 * 32}",
        "--warmup-tokens=0", f"--output-path={tmp_path / 'out'}",
    )  # fmt: skip
    assert "iteration        2/       2" in said and "saved checkpoint of iteration 2" in said
    (saved,) = (tmp_path / "out" / "checkpoint").glob("*/iter_0000002")
    seen = call(elsewhere, command, "inspect", saved)
    assert seen.startswith(f"checkpoint {saved.parent}") and str(saved) in seen


def test_an_installed_script_runs_the_installed_code(elsewhere, tmp_path):
    share = elsewhere / "share" / "megatron-patch"
    pair = tmp_path / "made"
    said = call(
        elsewhere, "sh", share / SCRIPTS[-1], "none", share, GOLDEN / "data" / "corpus.jsonl", "llamabpe", pair, GOLDEN / "hf_mha"
    )
    assert "documents" in said and (pair / "wudao_llamabpe_text_document.idx").is_file()
    assert "names another checkout" not in said
