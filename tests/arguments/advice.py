"""Right commands in which a test changes something, what is then found wrong, and what the findings say to write."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from megatron_patch.arguments import conversion, inspection, preparation, training
from megatron_patch.arguments.argument import Argument, Script
from megatron_patch.arguments.findings import Finding, Findings
from megatron_patch.arguments.tables import SCRIPTS
from tests.launching import ENGINE, FINETUNE_ARGUMENTS, GOLDEN, PRETRAIN_ARGUMENTS, ROOT

CORPUS = GOLDEN / "data" / "corpus_text_document"
SFT = GOLDEN / "sft" / "alpaca_output.json"
LISTS: dict[str, Script] = {script.name.split(".")[0]: script for script in SCRIPTS}
# Scripts that use a trained model: their lists are made of the same kinds.
_USES = ("run_evaluate_megatron_llama.sh", "run_text_generation_megatron_llama.sh")
CONVERT, PREPARE, PRETRAIN, FINETUNE = (script for script in SCRIPTS if script.path and not script.name.endswith(_USES))
INSPECT = next(script for script in SCRIPTS if script.name.endswith("inspection"))


@dataclass(frozen=True)
class Command:
    """A command of one script: a text for each `dest`."""

    script: Script
    values: dict[str, str]

    def changed(self, **values: str) -> Command:
        return Command(self.script, {**self.values, **values})

    @property
    def argv(self) -> list[str]:
        """As a script hands it on: every argument of a list by its flag."""
        words = []
        for one in self.script.all:
            if one.dest in self.values:
                words.append(f"{one.flag}={self.values[one.dest]}" if one.flag else self.values[one.dest])
        return words

    def findings(self) -> list[Finding]:
        """All that is wrong with it, in the order of the script's arguments."""
        found: list[Finding] = []
        with pytest.MonkeyPatch.context() as here:
            here.setattr(Findings, "exit_if_any", lambda self, name: found.extend(self.found))
            _read(self.script, self.argv, found)
        return sorted(found, key=lambda finding: finding.place)


def _read(script: Script, argv: list[str], found: list[Finding]) -> None:
    if script is PREPARE:
        found.extend(preparation.read(argv).findings.found)
    elif script in (CONVERT, INSPECT):
        (conversion if script is CONVERT else inspection).read(argv)
    else:
        training.read("pretrain" if script is PRETRAIN else "finetune", argv)


def named(script: Script, values: dict[str, object]) -> dict[str, str]:
    return {script.by_name[name].dest: str(value) for name, value in values.items()}


def right_commands(folder: Path) -> dict[str, Command]:
    """A command of each script that has no finding, and pre-training and fine-tuning that go on from a checkpoint."""
    text = {"TRAIN_DATASET_PATH": SFT, "VALID_DATASET_PATH": SFT, "OUTPUT_BASEPATH": folder / "out"}
    pretrain = {**PRETRAIN_ARGUMENTS, "DATASET_PATH": CORPUS, "OUTPUT_BASEPATH": folder / "out", "MODEL_SIZE": "tiny"}
    old = {"PRETRAIN_CHECKPOINT_PATH": GOLDEN / "megatron_2023/september/mha_tp1_pp1", "MODEL_SIZE": "auto"}
    convert = (ENGINE, GOLDEN / "hf_mha", folder / "new", 1, 1, "auto", 0, "false")
    prepare = (ENGINE, ROOT, GOLDEN / "data" / "corpus.jsonl", "llamabpe", folder / "data", GOLDEN / "hf_mha")
    return {
        "pretrain": Command(PRETRAIN, named(PRETRAIN, pretrain)),
        "pretrain from 2023": Command(PRETRAIN, named(PRETRAIN, {**pretrain, **old})),
        "pretrain on four": Command(PRETRAIN, named(PRETRAIN, {**pretrain, "TP": 2, "SP": "true"})),
        "finetune": Command(FINETUNE, named(FINETUNE, {**FINETUNE_ARGUMENTS, **text, **old})),
        "convert": Command(CONVERT, named(CONVERT, dict(zip(CONVERT.by_name, convert)))),
        "prepare": Command(PREPARE, named(PREPARE, dict(zip(PREPARE.by_name, prepare)))),
        "inspect": Command(INSPECT, {"path": str(CORPUS)}),
    }


def advice(problem: str) -> list[str]:
    """Every text that a finding says to write; none where it says what kind of thing to write."""
    match = re.search(r"write (?:one of )?([^ ].*?)(?:, for example| or less| or more)?\.(?: It was .*)?$", problem)
    if not match:
        return []
    if match[1].endswith("these, in this spelling"):
        listed = re.search(r"it takes (?:one of )?(.*): write", problem)
        return re.split(", | or ", listed[1]) if listed else []
    words = re.split(", | or ", match[1])
    return words if all(re.fullmatch(r"[^ ]+", word) for word in words) else []


def every(commands: dict[str, Command]) -> Iterator[tuple[str, Argument]]:
    """Each command with each of its arguments; a flag with the first command that has it."""
    seen = set()
    for name, command in commands.items():
        flags = [one for one in command.script.flags if one not in seen]
        seen.update(flags)
        for argument in (*command.script.documented, *flags):
            yield name, argument
