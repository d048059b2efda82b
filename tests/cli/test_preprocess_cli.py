"""The documented script, under every sh that is there, and the command beneath it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden"
SCRIPT = ROOT / "toolkits" / "pretrain_data_preprocessing" / "run_make_pretraining_dataset.sh"
SHELLS = [shell for shell in ("dash", "bash", "sh") if shutil.which(shell)]


def run(command, cwd):
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, env={**os.environ, "PYTHON": sys.executable})


@pytest.mark.parametrize("shell", SHELLS)
def test_six_arguments_make_megatron_s_bytes(shell, tmp_path):
    output = tmp_path / "a 'b' $(touch pwned); 输出*"
    inputs = tmp_path / "in put"
    inputs.mkdir()
    shutil.copy(GOLDEN / "data" / "corpus.jsonl", inputs)
    arguments = ["/root/Megatron-LM-230512", str(ROOT), str(inputs), "llamabpe", str(output), str(GOLDEN / "hf_mha")]
    done = run([shell, str(SCRIPT), *arguments, "--workers", "1"], tmp_path)
    assert done.returncode == 0, done.stderr
    for ending in (".bin", ".idx"):
        made = output / f"wudao_llamabpe_text_document{ending}"
        assert made.read_bytes() == (GOLDEN / "data" / f"corpus_text_document{ending}").read_bytes()
    assert "47 documents, 3528 tokens" in done.stdout and "0 bad and 1 empty" in done.stdout
    assert not (tmp_path / "pwned").exists()


def test_every_finding_is_told_at_once(tmp_path):
    (tmp_path / "file").touch()
    arguments = ["/m", "/no/patch", "/no/input", "jiebabpe", str(tmp_path / "file" / "out"), str(tmp_path)]
    done = run(["sh", str(SCRIPT), *arguments, "--workers", "0"], tmp_path)
    assert done.returncode == 2
    for words in (
        "$2 MEGATRON_PATCH_PATH: got '/no/patch'",
        "$3 input_data_dir: got '/no/input'",
        "$4 tokenizer: got 'jiebabpe'; it takes llamabpe",
        "$5 output_data_dir: got ",
        f"$6 load_dir: got '{tmp_path}'; {tmp_path} holds neither tokenizer.model nor tokenizer.json",
        "--workers: got '0'",
    ):
        assert words in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("count", [0, 5])
def test_a_wrong_count_prints_the_documented_list(tmp_path, count):
    done = run(["sh", str(SCRIPT), *["x"] * count], tmp_path)
    assert done.returncode == 2
    assert "takes 6 arguments and got" in done.stderr and "load_dir=$6" in done.stderr


def test_the_split_and_the_pair_in_one_command(tmp_path):
    command = [sys.executable, "-m", "megatron_patch.cli.preprocess", "--input", str(GOLDEN / "data" / "wudao_raw")]
    command += ["--sft-output-dir", str(tmp_path / "sft"), "--output-prefix", str(tmp_path / "pair"), "--workers", "1"]
    command += ["--tokenizer-folder", str(GOLDEN / "hf_mha"), "--clean", "wudao"]
    done = run(command, ROOT)
    assert done.returncode == 1 and "records are bad" in done.stderr
    done = run([*command, "--max-bad-fraction", "0.1"], ROOT)
    assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in (tmp_path / "sft").iterdir()) == [
        "wudao_skipped.jsonl",
        "wudao_train.json",
        "wudao_valid.json",
    ]
    assert (tmp_path / "pair.idx").exists()


def test_the_command_says_when_nothing_is_asked_for(tmp_path):
    command = [sys.executable, "-m", "megatron_patch.cli.preprocess", "--input", str(GOLDEN / "data" / "corpus.jsonl")]
    done = run(command, ROOT)
    assert done.returncode == 2 and "one of --output-prefix, --output-dir and --sft-output-dir" in done.stderr
