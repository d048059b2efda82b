"""Whether a process ends with its parent: real processes of a shell's."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import psutil
import pytest

from tests.launching import ROOT, hear_signals

ASK = (
    f"{sys.executable} -c 'from megatron_patch.processes.parents import waiting_parent as w; print(w() is not None, flush=True)'"
)


@pytest.mark.parametrize(
    "script, waited_for",
    [
        (f"{ASK}; true", True),
        (f"nohup {ASK} 2>&1; true", False),
        (f"{ASK} & wait", False),
        (f"set -m; {ASK} & wait", False),
        (f"setsid -w {ASK}; true", False),
    ],
    ids=["a script waits", "nohup", "in the background", "a job of its own", "setsid"],
)
def test_only_who_is_waited_for_ends_with_the_script(script, waited_for):
    done = subprocess.run(["bash", "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60, preexec_fn=hear_signals)
    assert done.stdout.strip() == str(waited_for), done.stderr


CHILD = "import sys, time; from megatron_patch.processes.parents import end_with_parent as end; end(int(sys.argv[1])); {}"
PARENT = (
    "import os, subprocess, sys; me = str(os.getpid()) if sys.argv[2] == 'here' else '1'; "
    "c = subprocess.Popen([sys.executable, '-c', sys.argv[1], me]); print(c.pid, flush=True); sys.exit(c.wait())"
)


def test_a_child_is_killed_with_its_parent():
    say = "print('asked', flush=True); time.sleep(300)"
    with subprocess.Popen([sys.executable, "-c", PARENT, CHILD.format(say), "here"], cwd=ROOT, stdout=subprocess.PIPE) as parent:
        child = psutil.Process(int(parent.stdout.readline()))
        assert parent.stdout.readline() == b"asked\n"
        parent.kill()
        psutil.wait_procs([child], timeout=60)
        assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_a_child_whose_parent_was_gone_before_it_could_ask_ends_by_itself():
    command = [sys.executable, "-c", PARENT, CHILD.format("print('went on')"), "gone"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 128 + signal.SIGKILL and "went on" not in done.stdout
    assert os.getpid() != 1


def test_every_training_script_s_ranks_end_with_torchrun():
    entries = [
        path for path in (ROOT / "megatron_patch/cli").glob("*.py") if "import read_config, training_session" in path.read_text()
    ]
    assert {path.stem for path in entries} == {"pretrain", "finetune"}  # finetune_with_ga is finetune with another list
    for path in entries:
        assert "    end_at_once()" in path.read_text() and "    end_with_torchrun()" in path.read_text(), path
