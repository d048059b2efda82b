"""The scripts and their lists say the same, and everything on a list is checked, shown by --help and in the tables."""

from __future__ import annotations

import json
import re
from dataclasses import fields, replace
from pathlib import Path

import pytest

from megatron_patch.arguments import conversion, training
from megatron_patch.arguments.argument import Argument, Script
from megatron_patch.arguments.command_line import given_texts
from megatron_patch.arguments.findings import Findings
from megatron_patch.arguments.option_rows import LAUNCHER
from megatron_patch.arguments.tables import SCRIPTS
from megatron_patch.arguments.tables import main as print_tables
from megatron_patch.config import Options
from megatron_patch.data.prompts import TEMPLATES
from megatron_patch.llama.model_config import LLAMA_SIZES
from megatron_patch.preparation.wudao import CLEANERS
from tests.launching import ENGINE, FINETUNE_ARGUMENTS, GOLDEN, PRETRAIN_ARGUMENTS, ROOT, run

SHELL = [script for script in SCRIPTS if script.path]
SFT = GOLDEN / "sft" / "alpaca_output.json"
DOCUMENTED = re.compile(r"^(\w+)=\$\{?([0-9]+)\}? *# (.*)$", re.MULTILINE)
LAUNCHED = re.compile(r'(--[a-z0-9-]+)="\$(\w+)"')


def spelt(text: str) -> str:
    """The documented lines of two scripts have one colon in two widths."""
    return text.replace("：", ": ").replace(":  ", ": ")


@pytest.mark.parametrize("script", SHELL, ids=lambda script: script.name)
def test_a_script_s_lines_are_its_list(script: Script):
    text = (ROOT / script.path).read_text(encoding="utf-8")
    lines = [(name, int(number), spelt(meaning)) for name, number, meaning in DOCUMENTED.findall(text)]
    assert lines == [(one.name, one.number, spelt(one.zh)) for one in script.documented]
    assert LAUNCHED.findall(text) == [(one.flag, one.name) for one in script.documented]
    assert set(re.findall(r"^(?:check_count|shift) ([0-9]+)", text, re.MULTILINE)) == {str(len(lines))}


def test_every_script_with_documented_lines_has_a_list():
    found = [path for folder in ("examples", "toolkits") for path in (ROOT / folder).rglob("*.sh")]
    assert {str(path.relative_to(ROOT)) for path in found} == {script.path for script in SHELL}


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("script", SHELL, ids=lambda script: script.name)
def test_help_shows_the_whole_list_once_and_no_other_script_s_flags(script: Script, language: str):
    said = run(ROOT / script.path, "--help", job={"LC_ALL": "zh_CN.UTF-8" if language == "zh" else "C.UTF-8"}).stdout
    assert (script.zh if language == "zh" else script.en) in said.splitlines()[0]
    entries = re.split(r"^  (?=\S)", said.partition("\n\n")[2], flags=re.MULTILINE)[1:]
    shown = {entry.split("  ")[0]: entry for entry in entries}
    assert len(shown) == len(entries)
    wanted = [*(f"${one.number} {one.name} {one.flag}" for one in script.documented), *(one.flag for one in script.flags)]
    assert [*shown][:-2] == wanted and [*shown][-2:] == ["--language en|zh\n", "--help\n"]
    for name, one in zip(wanted, (*script.documented, *script.flags)):
        first, *meaning = (line.strip() for line in shown[name].splitlines())
        assert ("; default " in first or "；默认 " in first) == (one.default not in (None, ""))
        assert " ".join(line for line in meaning if line).startswith(getattr(one, language))


def test_ranges_and_defaults_are_in_the_help_and_in_both_tables(capsys):
    assert print_tables([]) == 0
    tables = capsys.readouterr().out
    assert "| `--adam-beta2` | a number from 0 to below 1 | 0.95 | Decay rate of Adam's second moment. |" in tables
    assert "| `--adam-beta2` | 不小于 0 且小于 1 的数 | 0.95 | Adam 二阶矩的衰减率 |" in tables
    assert "| 4 | TP | `--tensor-model-parallel-size` | 不小于 1 的整数 |  | 模型并行度 |" in tables
    assert "| `--packing` | true or false | false |" in tables and "| `--max-shard-size` | 大小，如 5GB、500MB | 5GB |" in tables
    assert print_tables(["fr"]) == 2


def test_training_s_flags_are_the_fields_of_options():
    for script in training.LISTS.values():
        flags = [one.dest for one in (*script.flags, *script.others) if one not in LAUNCHER]
        assert sorted(flags) == sorted(one.name for one in fields(Options))
    assert all(one.en and one.zh for script in SCRIPTS for one in script.all)


def test_choices_that_other_rooms_decide():
    choices = {(script.name, one.flag): one.choices for script in SCRIPTS for one in script.all}
    assert choices["megatron_patch.cli.inspection", "--template"] == TEMPLATES
    assert choices["run_pretrain_megatron_llama.sh", "--template"] == ("auto", *TEMPLATES)
    assert sorted(choices["run_make_pretraining_dataset.sh", "--clean"]) == sorted(CLEANERS)


BAD = {
    "whole": "1_0",
    "number": "1e",
    "choice": "Auto ",
    "boolean": "yes",
    "path": "x\0y",
    "data": "x\0y",
    "json": "x\0y",
    "paths": "x\0y",
    "size": "5 bytes",
}
EVERY = [(script, one) for script in SCRIPTS for one in script.all if one.kind in BAD]


@pytest.mark.parametrize(("script", "argument"), EVERY, ids=lambda one: getattr(one, "name", ""))
def test_a_value_of_the_wrong_kind_is_found_under_the_argument_s_name(script: Script, argument: Argument):
    for text in (BAD[argument.kind], "x\r"):
        given = {one.dest: "1" for one in script.all if one.required} | {argument.dest: text}
        flags = {one.dest: f"{one.flag}=" if one.flag else "" for one in script.all}
        findings = Findings()
        texts = findings.texts(script, given_texts(script, [flags[name] + value for name, value in given.items()]))
        findings.value(argument, texts[argument.dest])
        assert findings.sentences[0].startswith(f"{argument.label}: got '") and findings.sentences[0].endswith(".")


def arguments(task: str, folder: Path, *flags: str, **changed: object) -> list[str]:
    data = {"DATASET_PATH": GOLDEN / "data" / "corpus_text_document"}
    data = data if task == "pretrain" else {"TRAIN_DATASET_PATH": SFT, "VALID_DATASET_PATH": SFT}
    defaults = PRETRAIN_ARGUMENTS if task == "pretrain" else FINETUNE_ARGUMENTS
    values = {**defaults, **data, "MODEL_SIZE": "tiny", "OUTPUT_BASEPATH": folder, **changed}
    return [f"{training.ARGUMENTS[task][name].flag}={value}" for name, value in values.items()] + list(flags)


def test_flags_reach_the_configuration_as_typed(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    flags = ["--packing", "--cuda-graphs", "false", "--profile=true", "--adam-eps", "1e-6", "--seed=7", "--template", "alpaca"]
    read = training.read("finetune", arguments("finetune", tmp_path, *flags, f"--tokenizer-path={GOLDEN / 'hf_mha'}"))
    wanted = Options(seed=7, adam_eps=1e-6, packing=True, cuda_graphs=False, profile=True, template="alpaca")
    assert read.config.options == replace(wanted, tokenizer_path=str(GOLDEN / "hf_mha"))
    assert not [note for note in read.notes if "pre-training" in note]


def test_a_flag_that_changes_nothing_here_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")

    def idle(task, *flags):
        notes = training.read(task, arguments(task, tmp_path, *flags)).notes
        return sorted(note.partition(", and changes nothing here")[0] for note in notes if "changes nothing" in note)

    flags = ["--eval-interval=0", "--split=9,1", "--template=alpaca", f"--tokenizer-path={GOLDEN / 'hf_mha'}"]
    assert idle("finetune", *flags) == ["--eval-interval is for runs by iterations", "--split is for pre-training"]
    flags = ["--template=llama2-chat", "--max-bad-fraction=0.5", "--tokenizer-engine=auto", "--eval-interval=0"]
    assert idle("pretrain", *flags) == [f"{flag} is for JSON data" for flag in ("--max-bad-fraction", "--template",
                                                                                "--tokenizer-engine")]  # fmt: skip


def test_a_path_of_a_flag_that_no_file_can_have_is_found_once(tmp_path, capsys):
    with pytest.raises(SystemExit):
        training.read("pretrain", arguments("pretrain", tmp_path, "--resume-from=x\0y", "--tokenizer-path=" + "a" * 256))
    said = capsys.readouterr().err
    assert "2 argument errors" in said and "--resume-from: got 'x\\x00y'; it holds a NUL character" in said
    assert "--tokenizer-path: got '" in said


@pytest.mark.parametrize("task", ["pretrain", "finetune"])
def test_tp_divides_the_feed_forward_layer_in_training_as_in_conversion(task, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    source, target = tmp_path / "hf", tmp_path / "new"
    source.mkdir()
    config = json.loads((GOLDEN / "hf_mha" / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "intermediate_size": 171}))
    (source / "model.safetensors").write_bytes((GOLDEN / "hf_mha" / "model.safetensors").read_bytes())
    found = "; it must divide the 171 rows of the feed-forward layer: write one of 1."
    values = dict(zip(conversion.ARGUMENTS, (ENGINE, source, target, 2, 1, "auto", 0, "false")))
    with pytest.raises(SystemExit):
        conversion.read([f"{conversion.ARGUMENTS[name].flag}={value}" for name, value in values.items()])
    assert f"$4 TP: got '2'{found}" in capsys.readouterr().err
    odd = replace(LLAMA_SIZES["tiny"], ffn_hidden_size=171)
    monkeypatch.setattr(training._Reader, "source_and_model", lambda self: (None, odd))
    with pytest.raises(SystemExit):
        training.read(task, arguments(task, tmp_path, TP=2))
    assert f" TP: got '2'{found}" in capsys.readouterr().err
