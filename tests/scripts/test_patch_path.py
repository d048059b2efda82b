"""MEGATRON_PATCH_PATH decides which checkout's code runs, as in the original, where it goes onto PYTHONPATH."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.launching import FINETUNE, FINETUNE_ARGUMENTS, GOLDEN, PRETRAIN, PRETRAIN_ARGUMENTS, ROOT, environment, run, succeed

PREPARE = ROOT / "toolkits/pretrain_data_preprocessing/run_make_pretraining_dataset.sh"
LINE = "MEGATRON_PATCH_PATH names another checkout than this script's: the code of {} runs, not that of {}."


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """A copy of this checkout whose modules say that they are imported, in a folder that a shell could trip over."""
    folder = tmp_path_factory.mktemp("other") / "a 'b' $(touch pwned); 目录*"
    shutil.copytree(ROOT / "megatron_patch", folder / "megatron_patch", ignore=shutil.ignore_patterns("__pycache__"))
    for module in ("launch", "cli/preprocess", "data/indexed_pretrain"):
        path = folder / "megatron_patch" / f"{module}.py"
        text = path.read_text("utf-8")
        place = text.find("if __name__") if "if __name__" in text else len(text)
        path.write_text(f"{text[:place]}\nprint('{module} of the other', flush=True)\n{text[place:]}", "utf-8")
    return folder


def pretrain_values(tmp_path, checkout):
    return {**PRETRAIN_ARGUMENTS, "MODEL_SIZE": "tiny", "MEGATRON_PATCH_PATH": checkout, "OUTPUT_BASEPATH": tmp_path / "out",
            "DATASET_PATH": GOLDEN / "data" / "corpus_text_document", "TRAIN_TOKENS": 4 * 32, "WARMUP_TOKENS": 0,
            "TP": 2}.values()  # fmt: skip


def test_the_launcher_and_every_rank_run_the_named_checkout(tmp_path, other):
    output = succeed(run(PRETRAIN, *pretrain_values(tmp_path, other), "--num-workers", 0, "--eval-interval", 0, processes=2))
    assert output.count(LINE.format(other, ROOT)) == 1
    assert output.count("launch of the other") == 1 and output.count("data/indexed_pretrain of the other") == 2
    assert "iteration        1/       1" in output
    assert not list(tmp_path.rglob("pwned")) and not (ROOT / "pwned").exists()


def test_fine_tuning_runs_the_named_checkout(tmp_path, other):
    values = {**FINETUNE_ARGUMENTS, "MEGATRON_PATCH_PATH": other, "ENV": "neither", "OUTPUT_BASEPATH": tmp_path}
    result = run(FINETUNE, *values.values())
    assert result.returncode == 2 and "$1 ENV: got 'neither'" in result.stdout
    assert "launch of the other" in result.stdout and LINE.format(other, ROOT) in result.stdout
    assert "$3 MEGATRON_PATCH_PATH" not in result.stdout


@pytest.mark.parametrize("shell", ["dash", "bash"])
def test_data_preparation_runs_the_named_checkout(tmp_path, other, shell):
    """Named by a relative path, from another folder."""
    (tmp_path / "link").symlink_to(other)
    values = ["none", "link", GOLDEN / "data" / "corpus.jsonl", "llamabpe", tmp_path / "made", GOLDEN / "hf_mha"]
    output = succeed(run(PREPARE, *values, shell=shell, cwd=tmp_path))
    assert "cli/preprocess of the other" in output and LINE.format(tmp_path / "link", ROOT) in output
    assert (tmp_path / "made" / "wudao_llamabpe_text_document.idx").exists()


def test_one_s_own_folder_by_another_path_says_nothing(tmp_path):
    (tmp_path / "link").symlink_to(ROOT)
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "megatron_patch").symlink_to(ROOT / "megatron_patch")
    for path in (tmp_path / "link", tmp_path / "parts", ROOT / "tests" / "..", f"{ROOT}/"):
        result = run(PREPARE, "none", path, tmp_path / "no input", "llamabpe", tmp_path, GOLDEN / "hf_mha")
        assert result.returncode == 2 and "1 argument error" in result.stdout, result.stdout
        assert "checkout" not in result.stdout


def test_a_wrong_one_stays_an_error(tmp_path):
    (tmp_path / "megatron_patch").mkdir()  # as in the original project, which has no launch.sh
    values = ["none", tmp_path, GOLDEN / "data" / "corpus.jsonl", "llamabpe", tmp_path / "made", GOLDEN / "hf_mha"]
    result = run(PREPARE, *values)
    assert result.returncode == 2 and f"$2 MEGATRON_PATCH_PATH: got '{tmp_path}'; it takes the folder that holds" in result.stdout
    result = run(PREPARE, "none", "", *values[2:])
    assert result.returncode == 2 and "$2 MEGATRON_PATCH_PATH: got ''" in result.stdout


def test_an_entry_without_its_script_does_not_pass_over_the_argument(tmp_path, other):
    """Its Python has chosen the code already: what it was told is not what runs."""
    flags = ["--megatron-patch-path", str(other), "--input", str(tmp_path), "--output-prefix", str(tmp_path / "out")]
    command = [sys.executable, "-m", "megatron_patch.cli.preprocess", *flags, "--tokenizer-folder", str(GOLDEN / "hf_mha")]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.returncode == 2 and f"that is another checkout than {ROOT}, whose code runs here" in done.stderr


def test_a_folder_that_pythonpath_cannot_hold_is_said(tmp_path, other):
    folder = Path(shutil.copytree(other, tmp_path / "a:b"))
    result = run(PREPARE, "none", folder, tmp_path, "llamabpe", tmp_path, GOLDEN / "hf_mha")
    assert result.returncode == 2 and "no Python can import from" in result.stdout and "colon" in result.stdout
