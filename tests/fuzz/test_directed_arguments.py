"""Wrong input and its sentence: arguments, flags, a job's environment, scripts with Windows line ends."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from megatron_patch.cli import convert, preprocess
from megatron_patch.cli import inspection as inspect
from megatron_patch.launch import main as launch
from tests.launching import CONVERT, FINETUNE, GOLDEN, PRETRAIN, PRETRAIN_ARGUMENTS, ROOT, run

LONG, DIGITS = "a" * 256, "9" * 5000
PREPARE = ROOT / "toolkits/pretrain_data_preprocessing/run_make_pretraining_dataset.sh"

# (text that is typed, what the sentence says of it as a number, what it says of it as a path).
WHOLE = {
    "8\r": "it holds a carriage return (\\r), as texts from Windows have", "٣": "in digits", "８": "in digits",
    "1_000": "in digits",
    "1e8": "in digits", "+5": "in digits", "-0": "in digits", DIGITS: "it has 5000 digits, and a number may have 18",
    "": "in digits",
    " 8": "in digits", "8\n": "it ends with a line's end", "0x10": "in digits",
}  # fmt: skip
PATHS = {
    LONG: "a part of it has 256 bytes, and a file's name may have 255", "中" * 86: "a part of it has 258 bytes",
    "d/" * 2000: "it has 4000 bytes",
    "/tmp/x\r": "it holds a carriage return", "x\0y": "it holds a NUL character",
}  # fmt: skip


def pretraining(tmp_path: Path, **changed: object) -> list[str]:
    from megatron_patch.arguments.training import ARGUMENTS

    paths = {"MODEL_SIZE": "tiny", "DATASET_PATH": GOLDEN / "data" / "corpus_text_document", "OUTPUT_BASEPATH": tmp_path}
    values = {**PRETRAIN_ARGUMENTS, **paths, **changed}
    return ["pretrain", *(f"{ARGUMENTS['pretrain'][name].flag}={value}" for name, value in values.items())]


def refused(capsys, main, argv: list[str]) -> str:
    """Run a command that must end with status 2; returns its standard error."""
    try:
        status = main(argv)
    except SystemExit as end:
        status = end.code
    said = capsys.readouterr().err
    assert status == 2 and "\r" not in said and len(said) < 8000, said[:2000]
    return said


@pytest.mark.parametrize("text", WHOLE, ids=lambda text: repr(text[:8]))
@pytest.mark.parametrize("name", ["TP", "SEQ_LEN", "TRAIN_TOKENS", "BATCH_SIZE"])
def test_a_whole_number_of_training(name, text, tmp_path, capsys):
    said = refused(capsys, launch, pretraining(tmp_path, **{name: text}))
    assert f" {name}: got '" in said and WHOLE[text] in said


@pytest.mark.parametrize("text", PATHS, ids=lambda text: repr(text[:8]))
@pytest.mark.parametrize(
    "name", ["MEGATRON_PATH", "MEGATRON_PATCH_PATH", "DATASET_PATH", "PRETRAIN_CHECKPOINT_PATH", "OUTPUT_BASEPATH"]
)
def test_a_path_of_training(name, text, tmp_path, capsys):
    said = refused(capsys, launch, pretraining(tmp_path, **{name: text}))
    assert f" {name}: got '" in said and PATHS[text] in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["1e400", "1e-400", "1_0", "٣", "inf", "nan", "0x1p-3", "1e-5\r", "-1", "--"])
@pytest.mark.parametrize("name", ["LR", "MIN_LR"])
def test_a_number_of_training(name, text, tmp_path, capsys):
    said = refused(capsys, launch, pretraining(tmp_path, **{name: text}))
    assert f" {name}: got '" in said or "got '--'; write a value behind the equals sign" in said


@pytest.mark.parametrize(
    ("flag", "text"),
    [("--seed", "1_0"), ("--seed", "٣"), ("--seed", DIGITS), ("--seed", "1\r"), ("--weight-decay", "1e400"),
    ("--weight-decay", "1_0.0"),
     ("--num-workers", "1000000"), ("--eval-iters", "9999999999"), ("--split", "٩٨,2,0"), ("--split", "98,2,0\r"),
     ("--split", "1e308,1e308"),
     ("--tokenizer-path", LONG), ("--template", "alpaca\r"), ("--seed", "--"), ("--distributed-timeout-minutes", "99999999")],
    ids=repr,
)  # fmt: skip
def test_a_flag_of_training(flag, text, tmp_path, capsys):
    assert flag in refused(capsys, launch, [*pretraining(tmp_path), f"{flag}={text}"])


@pytest.mark.parametrize("name", ["WORLD_SIZE", "RANK", "MASTER_PORT", "NPROC_PER_NODE"])
@pytest.mark.parametrize("text", ["٣", DIGITS, "1\r", "99999999"], ids=lambda text: repr(text[:8]))
def test_the_environment_of_a_job(name, text, tmp_path, capsys, monkeypatch):
    for variable, value in {
        "WORLD_SIZE": "1",
        "RANK": "0",
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": "29500",
        name: text,
    }.items():
        monkeypatch.setenv(variable, value)
    monkeypatch.delenv("KUBERNETES_CONTAINER_RESOURCE_GPU", raising=False)
    assert f"the environment's {name} is '" in refused(capsys, launch, pretraining(tmp_path, ENV="dlc"))


@pytest.mark.parametrize(
    ("place", "text"),
    [(1, LONG), (1, "x\r"), (2, LONG), (2, "x\r"), (3, "1\r"), (3, "٣"), (3, DIGITS), (5, "auto\r"), (7, "false\r")],
)
def test_an_argument_of_conversion(place, text, tmp_path, capsys):
    from megatron_patch.arguments.conversion import ARGUMENTS

    values = ["/x", GOLDEN / "hf_mha", tmp_path / "new", 1, 1, "auto", 0, "false"]
    values[place] = text
    argv = [f"{argument.flag}={value}" for argument, value in zip(ARGUMENTS.values(), values)]
    assert f"${place + 1} " in refused(capsys, convert.main, argv)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("size", ["٣GB", DIGITS + "GB", "5GB\r", "0GB", "1e3GB", ""])
def test_a_size_of_conversion(size, tmp_path, capsys):
    from megatron_patch.arguments.conversion import ARGUMENTS

    values = ["/x", GOLDEN / "hf_mha", tmp_path / "new", 1, 1, "auto", 0, "false"]
    argv = [f"{argument.flag}={value}" for argument, value in zip(ARGUMENTS.values(), values)]
    assert "--max-shard-size" in refused(capsys, convert.main, [*argv, f"--max-shard-size={size}"])


@pytest.mark.parametrize("text", ["", *PATHS], ids=lambda text: repr(text[:8]))
@pytest.mark.parametrize("flag", ["--input", "--output-prefix", "--tokenizer-folder", "--sft-output-dir"])
def test_a_path_of_preparation(flag, text, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = {
        "--input": GOLDEN / "data" / "corpus.jsonl",
        "--output-prefix": "p",
        "--tokenizer-folder": GOLDEN / "hf_mha",
        flag: text,
    }
    assert flag in refused(capsys, preprocess.main, [f"{name}={value}" for name, value in given.items()])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["", *PATHS], ids=lambda text: repr(text[:8]))
def test_a_path_of_inspection(text, capsys):
    refused(capsys, inspect.main, [text])
    refused(capsys, inspect.main, [str(GOLDEN / "sft" / "alpaca_output.json"), f"--tokenizer-folder={text}"])


@pytest.mark.parametrize("shell", ["dash", "bash"])
@pytest.mark.parametrize("script", [PRETRAIN, FINETUNE, CONVERT, PREPARE],
                         ids=lambda path: path.name)  # fmt: skip
def test_a_script_with_windows_line_ends(script, shell, tmp_path):
    shutil.copytree(ROOT / "megatron_patch", tmp_path / "megatron_patch", ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    copy = tmp_path / script.relative_to(ROOT)
    copy.parent.mkdir(parents=True)
    shared = tmp_path / "megatron_patch" / "launch.sh"
    for wrong in (copy, shared):
        copy.write_bytes(script.read_bytes())
        shared.write_bytes((ROOT / "megatron_patch" / "launch.sh").read_bytes())
        assert "takes" in run(copy, "x", shell=shell).stdout
        wrong.write_bytes(wrong.read_bytes().replace(b"\n", b"\r\n"))
        result = run(copy, "x", shell=shell)
        assert result.returncode == 2 and len(result.stdout.splitlines()) == 2
        assert wrong.name in result.stdout and "has lines that end as on Windows, which no shell reads" in result.stdout
