"""What a user sees on the console: no warning of a library below, as Python shows them by default."""

from __future__ import annotations

import os
import shlex
import subprocess

import pytest

from megatron_patch.processes.console import LastingStream
from tests.faults.job import command
from tests.launching import (
    AS_USERS_HAVE_IT,
    GOLDEN,
    PRETRAIN,
    PRETRAIN_ARGUMENTS,
    convert,
    environment,
    library_warnings,
    run_forked,
    succeed,
)


def test_no_warning_of_a_library_reaches_the_console(tmp_path):
    """Those of imports would come in each command: test_documented_commands.py looks at a whole one."""
    model = convert(GOLDEN / "hf_gqa", tmp_path / "model")
    arguments = PRETRAIN_ARGUMENTS | dict(
        TP=2, SP="true", AC="sel", DO="true", SAVE_INTERVAL=1, TRAIN_TOKENS=2 * 4 * 32, WARMUP_TOKENS=0,
        DATASET_PATH=GOLDEN / "data/corpus_text_document", PRETRAIN_CHECKPOINT_PATH=model, OUTPUT_BASEPATH=tmp_path / "out",
    )  # fmt: skip

    def console(*flags: object) -> str:
        return succeed(run_forked(PRETRAIN, *arguments.values(), *flags, processes=2, job=AS_USERS_HAVE_IT))

    begun, resumed = console("--exit-interval", 1), console()
    assert "saved checkpoint of iteration 1 " in begun and "going on from iteration 1" in resumed
    assert library_warnings(begun + resumed) == []


def test_a_run_outlives_who_reads_its_console(tmp_path):
    """As `| tee`, which Ctrl-C ends as well, or a terminal that is closed: the lines are lost, and no step is."""
    said = f"{shlex.join(command(tmp_path, iterations=4))} 2>&1 | sed '/ iteration /q'"
    ended = subprocess.run(
        ["bash", "-o", "pipefail", "-c", said], env=environment(1), capture_output=True, text=True, timeout=240
    )
    assert ended.returncode == 0 and " iteration        1/       4 " in ended.stdout, ended.stdout + ended.stderr
    assert "Traceback" not in ended.stderr and list(tmp_path.glob("checkpoint/*/iter_0000004"))
    (log,) = tmp_path.glob("log/*/train.log")
    assert " iteration        4/       4 " in log.read_text(encoding="utf-8")


@pytest.mark.parametrize("refuses", ["a pipe that nobody reads", "a full disk"])
def test_what_the_console_refuses_is_lost(refuses, tmp_path):
    if refuses == "a full disk":
        there = os.open("/dev/full", os.O_WRONLY)
    else:
        reads, there = os.pipe()
        os.close(reads)
    with open(there, "wb") as raw:
        stream = LastingStream(raw, "utf-8", line_buffering=True)
        for _ in range(3):
            print("a line", file=stream, flush=True)
        if refuses != "a full disk":
            assert os.readlink(f"/proc/self/fd/{there}") == os.devnull and os.write(there, b"by a library") == 12
        room = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT)
        os.dup2(room, there)
        os.close(room)
        print("room again", file=stream, flush=True)
        stream.detach()
    assert (tmp_path / "log").read_text().endswith("room again\n")
