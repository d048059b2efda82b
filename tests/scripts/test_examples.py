"""The example that a usage text ends with works as it stands, and ends with the next command."""

from __future__ import annotations

import shlex
import subprocess

import pytest

from megatron_patch.arguments.commands import example
from tests.arguments.advice import CONVERT, FINETUNE, FINETUNE_WITH_GA, PREPARE, PRETRAIN
from tests.launching import ROOT, environment


@pytest.mark.parametrize("script", [CONVERT, PREPARE, PRETRAIN, FINETUNE, FINETUNE_WITH_GA], ids=lambda script: script.name)
def test_the_example_runs_and_names_the_next_step(script, tmp_path):
    command = example(script)
    assert command.startswith(f"cd {shlex.quote(str(ROOT))} && sh {script.path} ")
    words = [word.replace("example/", f"{tmp_path}/") for word in shlex.split(command)[3:]]
    done = subprocess.run(words, cwd=ROOT, env=environment(processes=1), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    said, following = done.stdout.rstrip().splitlines()[-2:]
    assert said.startswith("Next") and following.startswith("  sh ") and str(tmp_path) in following
