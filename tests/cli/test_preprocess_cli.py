"""The documented script, under every sh that is there, and the command beneath it."""

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import psutil
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
    done = run(["sh", str(SCRIPT), *arguments, "--workers", "0", "--max-document-mb", "0"], tmp_path)
    assert done.returncode == 2
    for words in (
        "$2 MEGATRON_PATCH_PATH: got '/no/patch'",
        "$3 input_data_dir: got '/no/input'",
        "$4 tokenizer: got 'jiebabpe'; it takes llamabpe",
        "$5 output_data_dir: got ",
        f"$6 load_dir: got '{tmp_path}'; {tmp_path} holds neither tokenizer.model nor tokenizer.json",
        "--workers: got '0'",
        "--max-document-mb: got '0'; it takes a whole number of at least 1: write 64",
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


def test_what_would_be_lost_is_said_before_anything_is_made(tmp_path):
    for name in ("wudao_train.json", "pair_skipped.jsonl"):
        shutil.copy(GOLDEN / "data" / "corpus.jsonl", tmp_path / name)
    command = [sys.executable, "-m", "megatron_patch.cli.preprocess", "--sft-output-dir", str(tmp_path), "--workers", "1"]
    command += ["--output-prefix", str(tmp_path / "pair"), "--tokenizer-folder", str(GOLDEN / "hf_mha"), "--input"]
    done = run([*command, str(GOLDEN / "data" / "corpus.jsonl")], ROOT)
    assert done.returncode == 2 and "nothing was started" in done.stderr
    assert f"--sft-output-dir: got '{tmp_path}'; {tmp_path}/wudao_train.json exist" in done.stderr
    done = run([*command, str(tmp_path), "--overwrite"], ROOT)
    assert done.returncode == 2 and "2 argument errors" in done.stderr
    assert f"--output-prefix: got '{tmp_path}/pair'; {tmp_path}/pair_skipped.jsonl is read as input" in done.stderr
    assert f"--sft-output-dir: got '{tmp_path}'; {tmp_path}/wudao_train.json is read as input" in done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["pair_skipped.jsonl", "wudao_train.json"]
    done = run([*command, str(GOLDEN / "data" / "corpus.jsonl"), "--overwrite"], ROOT)
    assert done.returncode == 0, done.stderr


# The command, whose reading stops after the third chunk: by then two workers are there.
HELD = """
import runpy, time
from megatron_patch.preparation import wudao_split
from megatron_patch.records import chunks, shards

def read_chunks(*arguments, **more):
    for number, chunk in enumerate(chunks.read_chunks(*arguments, **more), start=1):
        yield chunk
        if number == 3:
            print("held", flush=True)
            for _ in range(6000):  # a signal that comes just before one long sleep would wait for its end
                time.sleep(0.1)

shards.read_chunks = wudao_split.read_chunks = read_chunks
runpy.run_module("megatron_patch.cli.preprocess", run_name="__main__")
"""


@contextmanager
def held(folder, *flags):
    """The command in the middle of its work on 6 MB, and every process below it. What is left at the end is killed."""
    corpus = (GOLDEN / "data" / "corpus.jsonl").read_bytes()
    (folder / "in.jsonl").write_bytes(corpus * (6_000_000 // len(corpus)))
    command = [sys.executable, "-c", HELD, "--input", str(folder / "in.jsonl"), "--workers", "2", *map(str, flags)]
    parent = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    below = []
    try:
        assert parent.stdout.readline() == "held\n"
        below += psutil.Process(parent.pid).children(recursive=True)
        yield parent, below
    finally:
        for process in [parent, *left(below, 0)]:
            process.kill()
        parent.communicate()


def left(processes, timeout):
    """Those that still run after `timeout` seconds; one that nobody has waited for yet does not."""
    end = time.monotonic() + timeout
    while True:
        running = [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
        if not running or time.monotonic() > end:
            return running
        time.sleep(0.1)


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_no_process_outlives_the_command(tmp_path, end):
    with held(tmp_path, "--output-prefix", tmp_path / "out", "--tokenizer-folder", GOLDEN / "hf_mha") as (parent, below):
        assert len(below) >= 3, "two workers and multiprocessing's resource tracker"
        parent.send_signal(end)
        assert parent.wait(60) == (143 if end == signal.SIGTERM else -9)
        assert not left(below, 60)
    assert (tmp_path / "out.partial").is_dir() and not (tmp_path / "out.idx").exists(), "to be gone on with"


def test_a_terminated_split_leaves_nothing(tmp_path):
    with held(tmp_path, "--sft-output-dir", tmp_path / "sft") as (parent, _):
        assert len(list((tmp_path / "sft").iterdir())) == 3
        parent.terminate()
        assert parent.wait(60) == 143
    assert not list((tmp_path / "sft").iterdir())


def test_the_command_says_when_nothing_is_asked_for(tmp_path):
    command = [sys.executable, "-m", "megatron_patch.cli.preprocess", "--input", str(GOLDEN / "data" / "corpus.jsonl")]
    done = run(command, ROOT)
    assert done.returncode == 2 and "one of --output-prefix, --output-dir and --sft-output-dir" in done.stderr
