"""What a user sees on the console: no warning of a library below, as Python shows them by default."""

from __future__ import annotations

import re

from tests.launching import FINETUNE, FINETUNE_ARGUMENTS, GOLDEN, PRETRAIN, PRETRAIN_ARGUMENTS, convert, run, succeed

AS_USERS_HAVE_IT = {"PYTHONWARNINGS": ""}
# Python shows a warning as "FILE:LINE: SomeWarning: text", torch's C++ code as "[W1127 04:31… x.cpp:1] Warning: …".
WARNING = re.compile(r"^.*(?:[wW]arning\b|\[W\d|deprecated|/site-packages/).*$", re.MULTILINE)


def console(script, arguments: dict, processes: int, *flags: object) -> str:
    return succeed(run(script, *arguments.values(), *flags, processes=processes, job=AS_USERS_HAVE_IT))


def test_no_warning_of_a_library_reaches_the_console(tmp_path):
    model = convert(GOLDEN / "hf_gqa", tmp_path / "model")
    pretraining = PRETRAIN_ARGUMENTS | dict(
        TP=2, SP="true", AC="sel", DO="true", SAVE_INTERVAL=1, TRAIN_TOKENS=2 * 4 * 32, WARMUP_TOKENS=0,
        DATASET_PATH=GOLDEN / "data/corpus_text_document", PRETRAIN_CHECKPOINT_PATH=model, OUTPUT_BASEPATH=tmp_path / "out",
    )  # fmt: skip
    tuning = FINETUNE_ARGUMENTS | dict(
        PR="bf16", AC="full", FL="true", EPOCH=1, TRAIN_DATASET_PATH=GOLDEN / "sft/alpaca_output.json",
        VALID_DATASET_PATH=GOLDEN / "sft/alpaca_output.json", PRETRAIN_CHECKPOINT_PATH=model, OUTPUT_BASEPATH=tmp_path / "out",
    )  # fmt: skip
    begun = console(PRETRAIN, pretraining, 2, "--exit-interval", 1)
    resumed = console(PRETRAIN, pretraining, 2)
    tuned = console(FINETUNE, tuning, 1)
    assert "saved checkpoint of iteration 1 " in begun and "going on from iteration 1" in resumed and "saved checkpoint" in tuned
    assert not WARNING.findall(begun + resumed + tuned)
