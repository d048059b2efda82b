"""The example that a usage text ends with works as it stands, and ends with the next command."""

from __future__ import annotations

import shlex

import pytest

from megatron_patch.arguments.commands import example
from tests.arguments.advice import CONVERT, FINETUNE, FINETUNE_WITH_GA, PREPARE, PRETRAIN
from tests.launching import ROOT, run, run_forked, succeed

_FORKED = (PRETRAIN, FINETUNE)  # test_documented_commands.py has them with shell and torchrun


@pytest.mark.parametrize("script", [CONVERT, PREPARE, FINETUNE_WITH_GA, *_FORKED], ids=lambda script: script.name)
def test_the_example_runs_and_names_the_next_step(script, tmp_path):
    command = example(script)
    assert command.startswith(f"cd {shlex.quote(str(ROOT))} && sh {script.path} ")
    words = [word.replace("example/", f"{tmp_path}/") for word in shlex.split(command)[5:]]
    start = run_forked if script in _FORKED else run
    said, following = succeed(start(ROOT / script.path, *words, processes=1)).rstrip().splitlines()[-2:]
    assert said.startswith("Next") and following.startswith("  sh ") and str(tmp_path) in following
