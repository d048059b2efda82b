"""Commands of the original's present scripts are recognised and put into the documented order."""

from __future__ import annotations

import shlex

import pytest

from megatron_patch.arguments.argument import Script
from megatron_patch.arguments.original import original_command
from megatron_patch.arguments.training import read
from tests.arguments.advice import CONVERT, FINETUNE, FINETUNE_WITH_GA, PREPARE, PRETRAIN, right_commands
from tests.launching import ROOT

SIZES = "2048 80 0 bf16 1 2 sel true false false"
TAIL = "100000 /data/wudao_text_document /ckpt 100000000 10000 /out"
# As the original's documentation writes them: script here, words, those of the command that is offered.
RATES = "7B 1 8 1e-5 1e-6"
TYPED = {
    "pretrain": (PRETRAIN, f"dsw /patch {RATES} {SIZES} true {TAIL}", f"{RATES} {SIZES} {TAIL}"),
    "pretrain 2023-10": (PRETRAIN, f"dsw /megatron /patch {RATES} {SIZES} true {TAIL}", f"{RATES} {SIZES} {TAIL}"),
    "pretrain mcore": (PRETRAIN, f"dsw /patch {RATES} {SIZES} false false {TAIL}", f"{RATES} {SIZES} {TAIL}"),
    "pretrain 70B": (
        PRETRAIN,
        "dsw 70B 1 8 1e-5 1e-6 2048 80 bf16 8 4 1 true true true false sel false 100000 /a /b /ckpt 100000000 10000 /out",
        "70B 1 8 1e-5 1e-6 2048 80 0 bf16 8 4 sel true true true 100000 /a /ckpt 100000000 10000 /out",
    ),
    "finetune": (
        FINETUNE,
        f"dlc /patch 7B 1 1e-5 1e-6 {SIZES} true /t.json /v.json /ckpt 2 /out",
        f"7B 1 1e-5 1e-6 {SIZES} /t.json /v.json /ckpt 2 /out",
    ),
    "finetune mcore GA": (
        FINETUNE_WITH_GA,
        f"dsw /patch {RATES} {SIZES} true false 100 /t.json /v.json /ckpt 1000 100 /out",
        f"{RATES} {SIZES} true 100 /t.json /v.json /ckpt 1000 100 /out",
    ),
    "convert mcore": (CONVERT, "7B /hf /megatron /source /target 1 1 0 0 0 0 0 false", "/source /target 1 1 llama2-7b 0 false"),
    "prepare": (PREPARE, "/patch /in llamabpe /out /tokenizer", "/in llamabpe /out /tokenizer"),
}  # fmt: skip


@pytest.mark.parametrize("name", TYPED)
def test_one_sentence_and_the_command_in_the_documented_order(name: str):
    script, typed, wanted = TYPED[name]
    found = original_command(script, [*typed.split(), "--workers", "3"])
    assert found is not None and found.sentence.startswith(f"these are the {len(typed.split())} arguments of the original's")
    words = shlex.split(found.command)
    assert words[:2] == ["sh", str(ROOT / script.path)] and words[-2:] == ["--workers", "3"]
    assert len(words) - 4 == len(script.documented) and words[2:-2][-len(wanted.split()) :] == wanted.split()
    assert dict(zip(script.by_name, words[2:])).get("MEGATRON_PATCH_PATH", str(ROOT)) == str(ROOT)


def test_the_arguments_of_another_script_here_lead_to_that_script():
    words = f"dsw /patch {RATES} {SIZES} true 100 /t.json /v.json /ckpt 1000 100 /out".split()
    found = original_command(FINETUNE, words)
    assert found.sentence.startswith("these are the 25 arguments of run_finetune_megatron_llama_withGA.sh, which is here too. ")
    assert shlex.split(found.command) == ["sh", str(ROOT / FINETUNE_WITH_GA.path), "dsw", str(ROOT), *words[2:]]
    assert original_command(FINETUNE_WITH_GA, words) is None


def documented_words(script: Script, values: dict[str, str]) -> list[str]:
    return [values[one.dest] for one in script.documented]


def test_a_documented_command_is_never_taken_for_one(tmp_path):
    for command in right_commands(tmp_path).values():
        if command.script.path:
            words = documented_words(command.script, command.values)
            assert original_command(command.script, words) is None
            assert original_command(command.script, ["x", *words[1:-2], "x", "x"]) is None


def test_a_command_of_the_same_length_is_refused_in_its_one_sentence(tmp_path, capsys):
    script, typed, _ = TYPED["pretrain"]
    with pytest.raises(SystemExit) as left:
        read("pretrain", [f"{one.flag}={word}" for one, word in zip(script.documented, typed.split())])
    said = capsys.readouterr().err.splitlines()
    assert left.value.code == 2 and len(said) == 2 and "(without MEGATRON_PATH; with TE). Write:" in said[0]
