"""Right commands in which a test changes something, what is then found wrong, and what the findings say to write."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from megatron_patch.arguments import conversion, inspection, merge, preparation, training
from megatron_patch.arguments.argument import Argument, Script
from megatron_patch.arguments.conversion_list import CONVERT
from megatron_patch.arguments.evaluation import read_evaluation
from megatron_patch.arguments.evaluation_list import EVALUATE
from megatron_patch.arguments.findings import Finding, Findings
from megatron_patch.arguments.generation import read_generation
from megatron_patch.arguments.generation_list import GENERATE
from megatron_patch.arguments.inspection_list import INSPECT
from megatron_patch.arguments.merge_list import MERGE
from megatron_patch.arguments.plan import read_plan
from megatron_patch.arguments.plan_list import PLAN
from megatron_patch.arguments.preparation_list import PREPARE
from megatron_patch.arguments.processes import free_port
from megatron_patch.arguments.serving import read_chat, read_serve
from megatron_patch.arguments.serving_list import CHAT, SERVE
from megatron_patch.arguments.tables import SCRIPTS
from megatron_patch.arguments.training_list import FINETUNE, FINETUNE_WITH_GA, PRETRAIN
from tests.launching import ENGINE, FINETUNE_ARGUMENTS, GOLDEN, PRETRAIN_ARGUMENTS, ROOT, WITH_GA_ARGUMENTS

CORPUS = GOLDEN / "data" / "corpus_text_document"
SFT = GOLDEN / "sft" / "alpaca_output.json"
LISTS: dict[str, Script] = {script.name.split(".")[0]: script for script in SCRIPTS}
_READERS: dict[Script, Callable[[list[str]], object]] = {
    CONVERT: conversion.read,
    INSPECT: inspection.read,
    MERGE: merge.read,
    PRETRAIN: lambda argv: training.read("pretrain", argv),
    FINETUNE: lambda argv: training.read("finetune", argv),
    FINETUNE_WITH_GA: lambda argv: training.read("finetune_with_ga", argv),
    EVALUATE: read_evaluation,
    GENERATE: read_generation,
    CHAT: read_chat,
    SERVE: read_serve,
    PLAN: read_plan,
}


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
            here.setattr(Findings, "exit_if_any", lambda self, name: _leave(self, found))
            with contextlib.suppress(_FoundError):
                _read(self.script, self.argv, found)
        return sorted(found, key=lambda finding: finding.place)


class _FoundError(Exception):
    """What stands for the end of the process."""


def _leave(findings: Findings, found: list[Finding]) -> None:
    found.extend(findings.found)
    if found:
        raise _FoundError


def _read(script: Script, argv: list[str], found: list[Finding]) -> None:
    if script is PREPARE:
        found.extend(preparation.read(argv).findings.found)
    else:
        _READERS[script](argv)


def named(script: Script, values: dict[str, object]) -> dict[str, str]:
    return {script.by_name[name].dest: str(value) for name, value in values.items()}


def right_commands(folder: Path) -> dict[str, Command]:
    """A command of each script that has no finding, and pre-training and fine-tuning that go on from a checkpoint."""
    text = {"TRAIN_DATASET_PATH": SFT, "VALID_DATASET_PATH": SFT, "OUTPUT_BASEPATH": folder / "out"}
    pretrain = {**PRETRAIN_ARGUMENTS, "DATASET_PATH": CORPUS, "OUTPUT_BASEPATH": folder / "out", "MODEL_SIZE": "tiny"}
    old = {"PRETRAIN_CHECKPOINT_PATH": GOLDEN / "megatron_2023/september/mha_tp1_pp1", "MODEL_SIZE": "auto"}
    with_ga = {"DATASET_PATH": SFT, "VALID_DATASET_PATH": SFT, "OUTPUT_BASEPATH": folder / "out"}
    convert = (ENGINE, GOLDEN / "hf_mha", folder / "new", 1, 1, "auto", 0, "false")
    prepare = (ENGINE, ROOT, GOLDEN / "data" / "corpus.jsonl", "llamabpe", folder / "data", GOLDEN / "hf_mha")
    model, queries = GOLDEN / "hf_gqa", folder / "queries.jsonl"
    queries.write_text('{"query": "x"}\n')
    evaluate = ("dsw", ENGINE, ROOT, "auto", 2, 96, 80, 0, "fp32", 1, 1, SFT, model)
    generate = ("dsw", ENGINE, ROOT, model, "auto", 1, 2, 128, 80, 0, "fp32", 1, 64, 20, queries, folder / "answers", 0, 1, 1)
    return {
        "pretrain": Command(PRETRAIN, named(PRETRAIN, pretrain)),
        "pretrain from 2023": Command(PRETRAIN, named(PRETRAIN, {**pretrain, **old})),
        "pretrain on four": Command(PRETRAIN, named(PRETRAIN, {**pretrain, "TP": 2, "SP": "true"})),
        "finetune": Command(FINETUNE, named(FINETUNE, {**FINETUNE_ARGUMENTS, **text, **old})),
        "finetune with GA": Command(FINETUNE_WITH_GA, named(FINETUNE_WITH_GA, {**WITH_GA_ARGUMENTS, **with_ga, **old})),
        "convert": Command(CONVERT, named(CONVERT, dict(zip(CONVERT.by_name, convert)))),
        "prepare": Command(PREPARE, named(PREPARE, dict(zip(PREPARE.by_name, prepare)))),
        "inspect": Command(INSPECT, {"path": str(CORPUS)}),
        "merge": Command(MERGE, {"prefix": str(CORPUS), "output_prefix": str(folder / "joined")}),
        "evaluate": Command(EVALUATE, named(EVALUATE, dict(zip(EVALUATE.by_name, evaluate))) | {"results": str(folder / "r")}),
        "generate": Command(GENERATE, named(GENERATE, dict(zip(GENERATE.by_name, generate)))),
        "chat": Command(CHAT, {"checkpoint": str(model)}),
        "serve": Command(SERVE, {"checkpoint": str(model), "port": str(free_port())}),
        "plan": Command(PLAN, {"model": "7B", "gpus": "4", "tensor_model_parallel_size": "2"}),
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
