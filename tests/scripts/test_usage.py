"""Mistyped arguments: every finding at once, in sentences, with status 2, without torch, before any process starts."""

from __future__ import annotations

import json
import re
import sys
import tempfile
from pathlib import Path

import pytest

from tests.launching import (
    CONVERT,
    FINETUNE,
    FINETUNE_ARGUMENTS,
    GOLDEN,
    PRETRAIN,
    PRETRAIN_ARGUMENTS,
    ROOT,
    run,
    without_torch,
)

CORPUS = GOLDEN / "data" / "corpus_text_document"
SFT = GOLDEN / "sft" / "alpaca_output.json"
PREPARE = ROOT / "toolkits/pretrain_data_preprocessing/run_make_pretraining_dataset.sh"
COUNTS = {PRETRAIN: 24, FINETUNE: 22, CONVERT: 8, PREPARE: 6}


def pretrain_values(tmp_path: Path, **changed: object) -> list[object]:
    paths = {"DATASET_PATH": CORPUS, "OUTPUT_BASEPATH": tmp_path}
    return list({**PRETRAIN_ARGUMENTS, "MODEL_SIZE": "tiny", **paths, **changed}.values())


def refused(script: Path, *arguments: object, **kwargs) -> str:
    """The output of a call that must end with status 2, before torch is imported."""
    with tempfile.TemporaryDirectory() as folder:
        job = {**kwargs.pop("job", {}), **without_torch(Path(folder))}
        result = run(script, *arguments, job=job, **kwargs)
    assert result.returncode == 2, result.stdout
    assert "Traceback" not in result.stdout
    return result.stdout


@pytest.mark.parametrize("shell", ["dash", "bash"])
@pytest.mark.parametrize("script", COUNTS, ids=lambda path: path.name)
def test_a_wrong_count_prints_the_documented_list(script, shell):
    count = COUNTS[script]
    documented = [line for line in script.read_text(encoding="utf-8").splitlines() if "=$" in line and "  # " in line]
    assert len(documented) == count
    for given in (0, count - 1, count + 1):
        output = refused(script, *["x"] * given, shell=shell)
        assert all(line in output for line in documented)
        assert f"takes {count} arguments and got {given}" in output


A_FLAG = {PRETRAIN: "--pair-micro-batches", FINETUNE: "--packing", CONVERT: "--verify", PREPARE: "--overwrite"}


@pytest.mark.parametrize("script", COUNTS, ids=lambda path: path.name)
def test_help_lists_arguments_and_flags(script):
    result = run(script, "--help")
    assert result.returncode == 0
    assert re.search(rf"^  {A_FLAG[script]}\b.*\w", result.stdout, re.MULTILINE)


CASES = {
    "ENV": ("cloud", "dsw, dlc"),
    "PR": ("fp4", "fp16, bf16, fp32, fp8"),
    "AC": ("partial", "sel, full, none"),
    "TP": (3, "divide the 8 attention heads: write one of 1, 2"),
    "PP": (3, "divide the 4 layers: write one of 1, 2, 4"),
    "DATASET_PATH": ("/nowhere/corpus", "there is no /nowhere/corpus.idx and /nowhere/corpus.bin"),
    "GLOBAL_BATCH_SIZE": (7, "multiple of BATCH_SIZE × data-parallel size = 2 × 1: write 6"),
    "LR": ("fast", "a number of at least 0: write 1e-4, for example."),
    "DO": ("yes", "it takes true or false: write true."),
    "MODEL_SIZE": ("8B", "7B, 13B, 70B, tiny, auto"),
    "PRETRAIN_CHECKPOINT_PATH": ("/nowhere", "model_convertor.sh made, or none"),
    "MEGATRON_PATCH_PATH": ("/nowhere", f"write {ROOT}"),
    "TRAIN_TOKENS": (100, "one iteration is GLOBAL_BATCH_SIZE × SEQ_LEN"),
}


@pytest.mark.parametrize("name", CASES)
def test_each_argument_says_what_is_allowed(name, tmp_path):
    got, allowed = CASES[name]
    number = list(PRETRAIN_ARGUMENTS).index(name) + 1
    output = refused(PRETRAIN, *pretrain_values(tmp_path, BATCH_SIZE=2, **{name: got}))
    assert f"${number} {name}: got '{got}'; " in output
    assert allowed in output
    assert not list(tmp_path.iterdir())


def test_all_findings_come_at_once_in_the_script_s_order(tmp_path):
    wrong = {name: got for name, (got, _) in CASES.items() if name not in ("TRAIN_TOKENS", "GLOBAL_BATCH_SIZE")}
    lines = refused(PRETRAIN, *pretrain_values(tmp_path, **wrong)).splitlines()
    numbers = [int(line.split()[0][1:]) for line in lines if line.startswith("  $")]
    names = list(PRETRAIN_ARGUMENTS)
    # TP and PP are not judged where MODEL_SIZE says of no model.
    assert set(numbers) == {names.index(name) + 1 for name in wrong if name not in ("TP", "PP")}
    assert numbers == sorted(numbers)


def test_what_stands_in_for_a_value_that_cannot_be_read_is_not_judged(tmp_path):
    """One finding each: none about the 1 that stands for SEQ_LEN, or a folder that stands for a path."""
    long = "a" * 300
    values = {
        **FINETUNE_ARGUMENTS, "MODEL_SIZE": "tiny", "SEQ_LEN": "9" * 4300, "PAD_LEN": "80", "TRAIN_DATASET_PATH": long,
        "VALID_DATASET_PATH": long, "OUTPUT_BASEPATH": tmp_path / "out", "SP": "true", "TP": 2,
    }  # fmt: skip
    output = refused(FINETUNE, *values.values(), "--tokenizer-path", GOLDEN / "hf_mha")
    assert found(output) == ["SEQ_LEN:", "TRAIN_DATASET_PATH:", "VALID_DATASET_PATH:"]
    output = refused(PRETRAIN, *pretrain_values(tmp_path, TRAIN_TOKENS="٣", SEQ_LEN="x", DATASET_PATH=long, BATCH_SIZE=2))
    assert found(output) == ["SEQ_LEN:", "DATASET_PATH:", "TRAIN_TOKENS:"]


def found(output):
    """The names of the arguments that findings are about."""
    return [line.split()[1] for line in output.splitlines() if line.startswith("  $")]


def test_padding_beyond_the_sequence_is_refused(tmp_path):
    values = {
        **FINETUNE_ARGUMENTS, "MODEL_SIZE": "tiny", "PAD_LEN": 200, "TRAIN_DATASET_PATH": SFT,
        "VALID_DATASET_PATH": tmp_path / "none.json", "OUTPUT_BASEPATH": tmp_path / "out",
    }  # fmt: skip
    output = refused(FINETUNE, *values.values())
    assert "$9 PAD_LEN: got '200'; it must not be above SEQ_LEN = 128: write 128 or less." in output
    assert "$19 VALID_DATASET_PATH" in output and "there is no such file" in output


def test_unknown_flags_after_the_last_argument_are_named(tmp_path):
    output = refused(PRETRAIN, *pretrain_values(tmp_path), "--no-such-flag", "1")
    assert "--no-such-flag" in output


def test_a_flag_that_the_task_cannot_have_is_refused(tmp_path):
    output = refused(PRETRAIN, *pretrain_values(tmp_path), "--gradient-accumulation-steps", 2)
    assert "  --gradient-accumulation-steps: got '2'; it is for fine-tuning" in output
    values = {**FINETUNE_ARGUMENTS, "MODEL_SIZE": "tiny", "TRAIN_DATASET_PATH": SFT, "VALID_DATASET_PATH": SFT, "PR": "fp4"}
    output = refused(FINETUNE, *values.values(), "--gradient-accumulation-steps", 0)
    assert "  --gradient-accumulation-steps: got '0'; it takes a whole number of at least 1" in output.splitlines()[-1]
    assert "PR: got 'fp4'" in output


def test_nothing_in_a_path_is_run_by_a_shell(tmp_path):
    odd = tmp_path / "a b'c\"$(touch pwned)`touch pwned`;touch pwned *数据"
    odd.mkdir()
    output = refused(PRETRAIN, *pretrain_values(tmp_path, DATASET_PATH=odd / "none"), cwd=tmp_path)
    assert str(odd / "none") in output
    assert not (tmp_path / "pwned").exists()


def test_broken_indexed_data_is_found_before_training(tmp_path):
    for suffix in (".bin", ".idx"):
        (tmp_path / f"short{suffix}").write_bytes(Path(f"{CORPUS}{suffix}").read_bytes())
    (tmp_path / "short.bin").write_bytes(Path(f"{CORPUS}.bin").read_bytes()[:1000])
    output = refused(PRETRAIN, *pretrain_values(tmp_path / "out", DATASET_PATH=tmp_path / "short"))
    assert f"$20 DATASET_PATH: got '{tmp_path}/short'" in output and "short.bin" in output


@pytest.mark.parametrize("script", COUNTS, ids=lambda path: path.name)
def test_an_interpreter_without_the_libraries_is_named(script, tmp_path):
    bare = tmp_path / "bare python"
    bare.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S -E "$@"\n')
    bare.chmod(0o755)
    output = refused(script, *["x"] * COUNTS[script], job={"PYTHON": bare})
    assert f"{bare} has no torch megatron jinja2 numpy" in output
    assert f"or make one: {bare} -m venv '{ROOT}/.venv' && '{ROOT}/.venv/bin/python' -m pip install '{ROOT}'" in output


FLAGS = {
    "--keep-last=-1": "a whole number of at least 0",
    "--log-interval=0": "a whole number of at least 1",
    "--initial-loss-scale=0.5": "a number of at least 1",
    "--adam-eps=0": "a number above 0",
    "--adam-beta2=1": "from 0 to below 1",
    "--seed=-1": "a whole number of at least 0",
    "--max-bad-fraction=1.5": "a number from 0 to 1",
    "--split=abc": "write 98,2,0",
    "--tokenizer-path=/nowhere": "there is no such folder",
    "--packing=true": "it is for JSON data",
}


def test_flags_have_their_ranges(tmp_path):
    profile = ("--profile=true", "--profile-step-start=5", "--profile-step-end=5")
    lines = refused(PRETRAIN, *pretrain_values(tmp_path), *FLAGS, *profile).splitlines()
    for flag, allowed in {**FLAGS, "--profile-step-end=5": "above --profile-step-start = 5"}.items():
        name, _, got = flag.partition("=")
        assert any(line.startswith(f"  {name}: got '{got}") and allowed in line for line in lines), flag


@pytest.mark.parametrize("slip", ["8 ", "8\r", "+8", "1_0", "²"])
def test_a_number_is_digits_and_nothing_else(slip, tmp_path):
    """Whatever else Python takes for a number: the length of the run is reckoned from it."""
    output = refused(PRETRAIN, *pretrain_values(tmp_path, GLOBAL_BATCH_SIZE=slip, SEQ_LEN=slip))
    said = "it holds a carriage return" if "\r" in slip else "in digits"
    assert "$6 GLOBAL_BATCH_SIZE" in output and "$9 SEQ_LEN" in output and output.count(said) == 2


def test_text_without_a_tokenizer_is_found_before_training(tmp_path):
    paths = {"TRAIN_DATASET_PATH": SFT, "VALID_DATASET_PATH": SFT, "OUTPUT_BASEPATH": tmp_path}
    values = {**FINETUNE_ARGUMENTS, "MODEL_SIZE": "tiny", **paths}
    assert "JSON data needs a tokenizer" in refused(FINETUNE, *values.values())


def test_an_output_that_cannot_be_made_is_found_before_training(tmp_path):
    (tmp_path / "file").touch()
    output = refused(PRETRAIN, *pretrain_values(tmp_path, OUTPUT_BASEPATH=tmp_path / "file" / "below"))
    assert "$24 OUTPUT_BASEPATH: got" in output and "it takes a folder, which is made where it does not exist" in output


def test_a_checkpoint_that_is_not_whole_is_found_before_training(tmp_path):
    root = tmp_path / "checkpoint"
    root.mkdir()
    (root / "latest_checkpointed_iteration.txt").write_text("release")
    values = pretrain_values(tmp_path, PRETRAIN_CHECKPOINT_PATH=root)
    assert "release does not exist" in refused(PRETRAIN, *values)
    model = root / "release"
    model.mkdir()
    for name in ("metadata.json", ".metadata", "model.json"):
        (model / name).touch()
    assert "model.json is no JSON" in refused(PRETRAIN, *values)
    config = dict.fromkeys(("num_hidden_layers", "intermediate_size", "num_attention_heads", "vocab_size"), 8)
    (root / "config.json").write_text(json.dumps(config | {"hidden_size": None}))
    assert "config.json: it lacks hidden_size; a LLaMA config.json has all of" in refused(PRETRAIN, *values)


@pytest.mark.parametrize("between", [" ", ","], ids=["spaces", "commas"])
def test_a_blend_may_be_longer_than_a_path(between, tmp_path):
    blend = between.join(f"0.5{between}{tmp_path}/{'long' * 10}{number}" for number in range(80))
    assert refused(PRETRAIN, *pretrain_values(tmp_path, DATASET_PATH=blend)).count("there is no") == 80
