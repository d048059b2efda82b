"""How a run's processes start where a port was taken, and how they end: one line each, the first failure's status."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import socket
import subprocess
import sys

import pytest
from torch.distributed.elastic.multiprocessing import api

from megatron_patch.arguments.processes import free_port
from megatron_patch.torchrun import Stopping
from tests.launching import FINETUNE, FINETUNE_ARGUMENTS, GOLDEN, ROOT, environment, run


def test_what_a_user_can_mend_is_a_sentence_on_several_processes(tmp_path):
    """The first rank finds a bad record while the others wait for it."""
    data = tmp_path / "data.json"
    data.write_text(json.dumps([{"instruction": "Count.", "outputt": "One."}] * 4))
    paths = dict(TRAIN_DATASET_PATH=data, VALID_DATASET_PATH=data, OUTPUT_BASEPATH=tmp_path / "out")
    values = {**FINETUNE_ARGUMENTS, "MODEL_SIZE": "tiny", **paths}
    result = run(FINETUNE, *values.values(), "--tokenizer-path", GOLDEN / "hf_mha", processes=2)
    assert result.returncode == 2
    assert "data.json: 4 of 4 records cannot be used" in result.stdout
    assert "item 1: it has neither 'output' nor 'content'" in result.stdout
    assert "rank 0 was the first of this node to end early, with status 2" in result.stdout
    assert "Traceback" not in result.stdout


@pytest.mark.parametrize("grace, asked, given", [(40, True, 40), (40, False, 5), (None, True, 30)])
def test_only_a_save_is_waited_for(grace, asked, given):
    """After a signal as long as was asked for; after a failure there is nothing to wait for."""
    stopping, calls = Stopping(grace), []
    close = stopping.close(lambda context, death_sig, timeout: calls.append((death_sig, timeout)))
    for _ in range(3):  # the first signal counts
        with pytest.raises(api.SignalException) if asked and not stopping.begun else contextlib.nullcontext():
            if asked:
                stopping.on_signal(signal.SIGINT, None)
    close(None, signal.SIGINT, 30)
    assert calls == [(signal.SIGINT if grace is None else signal.SIGTERM, given)]


@pytest.mark.parametrize("named", [False, True])
def test_a_port_that_was_taken_meanwhile_is_left_unless_it_was_named(named):
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        port = other.getsockname()[1]
        command = [sys.executable, "-m", "megatron_patch.torchrun", "--nnodes=1", "--node-rank=0", "--nproc-per-node=1",
                   "--master-addr=127.0.0.1", f"--master-port={port}", "--no-python", "true"]  # fmt: skip
        job = {"MASTER_PORT": port} if named else None
        done = subprocess.run(command, env=environment(job=job), capture_output=True, text=True, timeout=200)
    assert (done.returncode == 0) != named, done.stderr
    assert (f"MASTER_PORT {port} is in use by another process of this node" in done.stderr) == named
    assert "Traceback" not in done.stderr


def test_the_only_rank_is_ended_when_nothing_runs_in_it_any_more():
    """No thread of its own can tell that the main one keeps Python's lock, and there is no other rank."""
    command = [sys.executable, "-m", "megatron_patch.torchrun", "--nnodes=1", "--node-rank=0", "--nproc-per-node=1",
               "--master-addr=127.0.0.1", f"--master-port={free_port()}", "-m", "tests.processes.silent_rank"]  # fmt: skip
    done = subprocess.run(command, env=environment(), cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1, done.stderr
    who = r"rank 0 \(process \d+ on node-0\) has given no sign of life for 0.01 min: it is stopped, it waits"
    assert re.search(rf"^the run was ended: {who} .*; it was at iteration 7, the step\.$", done.stderr, re.MULTILINE), done.stderr
