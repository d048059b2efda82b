"""What a finding says to write is accepted when it is written."""

from __future__ import annotations

import functools
import random

import pytest

from megatron_patch.arguments import model
from megatron_patch.arguments.argument import TRUE_FALSE, Argument
from megatron_patch.arguments.meaning import meant_choice, meant_number, meant_whole
from tests.arguments.advice import Command, advice, every, right_commands

WRONG = {
    "whole": ("x", "1e8", "2048 ", "-1", "0", "2,048", "３２", "9" * 30, "7"),
    "number": ("x", "", "-1", "1e-5 ", "2", "nan", "1e–5", "0"),
    "choice": ("x", "7b ", "BF16", "bfloat16", "LLaMA2-7B", "None", "70B", "7B"),
    "boolean": ("x", "yes", "FALSE "),
    "size": ("x", "", "5G", "0GB", "5 gb ", "1e3GB"),
    "text": ("x", "", "1,2,3,4"),
    "path": ("", "/nowhere/x", "x" * 300),
    "data": ("", "/nowhere/x", "1 a b"),
    "json": ("", "/nowhere/x", "1 a b", "0 a 1 b"),
}  # fmt: skip


@pytest.fixture
def commands(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    return right_commands(tmp_path)


def test_the_commands_are_right(commands, monkeypatch):
    for name, command in commands.items():
        monkeypatch.setenv("GPUS_PER_NODE", "4" if name == "pretrain on four" else "1")
        assert not command.findings(), name


def about(command: Command, argument: Argument) -> list[str]:
    return [one.problem for one in command.findings() if one.label in (argument.label, argument.flag)]


def test_one_wrong_value_is_mended_by_what_its_finding_says(commands, monkeypatch):
    # The files do not change between four thousand readings.
    monkeypatch.setattr(model, "read_vocabulary_rows", functools.cache(model.read_vocabulary_rows))
    tried = 0
    for name, argument in every(commands):
        monkeypatch.setenv("GPUS_PER_NODE", "4" if name == "pretrain on four" else "1")
        for text in WRONG.get(argument.kind, ()):
            wrong = commands[name].changed(**{argument.dest: text})
            for problem in about(wrong, argument):
                for written in advice(problem):
                    tried += 1
                    left = about(wrong.changed(**{argument.dest: written}), argument)
                    # What was typed, in the spelling that is taken, may not go with the rest of the command.
                    own = written in (str(meant_whole(text)), meant_number(text), meant_choice(text, TRUE_FALSE))
                    assert problem not in left and (own or not left), (name, argument.name, text, problem, left)
    assert tried > 500


@pytest.mark.parametrize("seed", range(10))
def test_of_many_wrong_values_each_finding_goes_when_it_is_followed(commands, monkeypatch, seed):
    draw = random.Random(seed)
    monkeypatch.setenv("GPUS_PER_NODE", draw.choice("1248"))
    for command in commands.values():
        listed = [one for one in (*command.script.documented, *command.script.flags) if one.kind in WRONG]
        wrong = command.changed(**{one.dest: draw.choice(WRONG[one.kind]) for one in draw.sample(listed, min(5, len(listed)))})
        found = wrong.findings()
        assert len({str(one) for one in found}) == len(found)
        by_label = {one.label: one for one in listed} | {one.flag: one for one in listed}
        for finding in found:
            for written in advice(finding.problem):
                mended = wrong.changed(**{by_label[finding.label].dest: written})
                assert finding.problem not in about(mended, by_label[finding.label]), (written, wrong.values)
