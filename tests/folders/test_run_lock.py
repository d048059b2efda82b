"""A checkpoint folder is one run's at a time, and a dead one lets go by itself: here, in a container, far away."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest

from megatron_patch.errors import UserError
from megatron_patch.folders import run_lock
from megatron_patch.folders.run_lock import PREFIX, RunLock, take, taken
from megatron_patch.processes.identity import own_identity
from tests.launching import ROOT

QUIET = list[str]().append


def files(root) -> list[str]:
    return sorted(path.name for path in root.glob("*"))


def put(root, **changed) -> RunLock:
    """A lock file of a process that differs from this one in `changed`."""
    root.mkdir(exist_ok=True)
    owner = replace(own_identity(), **changed)
    lock = RunLock(root, root / f"{PREFIX}{owner.host}.{owner.pid}.put", owner, "2026-01-02 03:04:05")
    lock.path.write_bytes(b" " * 1024)
    lock.write(holds=True)
    return lock


def test_the_second_hears_who_the_first_is_and_takes_over_when_it_has_let_go(tmp_path):
    root = tmp_path / "run"
    first = take(root, QUIET)
    with pytest.raises(
        UserError, match=rf"{root} is held by another run: process {os.getpid()} on {own_identity().host}, since "
    ):
        take(root, QUIET)
    first.beat()
    assert files(root) == [first.path.name], "who was refused leaves nothing"
    first.release()
    assert not root.exists(), "an empty folder is left to nobody"
    take(root, QUIET).release()


@pytest.mark.parametrize("reaped", [True, False])
def test_a_killed_run_of_this_machine_lets_go_at_once(reaped, tmp_path):
    """Also while its parent has not asked for its status."""
    take_it = "import sys; from megatron_patch.folders.run_lock import take; take(sys.argv[1], print)"
    code = f"{take_it}; print('held', flush=True); input()"
    child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout.readline() == b"held\n"
    with pytest.raises(UserError, match=f"process {child.pid} "):
        take(tmp_path, QUIET)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    if reaped:
        child.wait()
    lock = take(tmp_path, QUIET)
    assert files(tmp_path) == [lock.path.name]
    child.communicate()


def test_a_number_that_was_given_again_is_another_process(tmp_path):
    put(tmp_path, started=own_identity().started - 1)
    assert take(tmp_path, QUIET).path.exists()


def test_what_cannot_be_seen_from_here_is_told_by_its_heartbeat(tmp_path, monkeypatch):
    monkeypatch.setattr(run_lock, "STALE", 2.0)
    theirs, told = put(tmp_path, host="node-7", pid=4, space="pid:[1]"), []
    ended = threading.Event()

    def beat():
        while not ended.wait(0.2):
            theirs.write(holds=True)

    heart = threading.Thread(target=beat)
    heart.start()
    try:
        with pytest.raises(UserError, match="process 4 on node-7, since 2026-01-02 03:04:05"):
            take(tmp_path, told.append)
    finally:
        ended.set()
        heart.join()
    assert told == ["process 4 on node-7, which cannot be seen from here, held the checkpoint folder; "
                    "waiting up to 2 s for a sign of life."]  # fmt: skip
    lock = take(tmp_path, QUIET)  # its heart has stopped
    assert files(tmp_path) == [lock.path.name]


def test_the_age_of_a_heartbeat_is_the_file_system_s_whatever_a_clock_says(tmp_path, monkeypatch):
    theirs, told = put(tmp_path, boot="another"), []
    os.utime(theirs.path, (time.time() - 61, time.time() - 61))
    monkeypatch.setattr(run_lock.time, "time", lambda: 0.0)
    take(tmp_path, told.append)
    assert not told and not theirs.path.exists()


@pytest.mark.parametrize("content", [b"", b"{}", b"\0" * 1024, json.dumps({"host": 1}).encode()])
def test_what_is_no_lock_is_left_over(content, tmp_path):
    (tmp_path / f"{PREFIX}x").write_bytes(content)
    os.utime(tmp_path / f"{PREFIX}x", (0, 0))
    take(tmp_path, QUIET)
    assert not (tmp_path / f"{PREFIX}x").exists()


def test_of_many_that_start_together_one_holds_the_folder(tmp_path):
    """Each holds it for a moment; none sees another in it."""
    code = """import sys, time
from megatron_patch.errors import UserError
from megatron_patch.folders.run_lock import take
while time.time() < float(sys.argv[2]): pass
try: take(sys.argv[1], print)
except UserError as error: sys.exit(3 if 'is held by another run' in str(error) else str(error))
print('held', flush=True)
sys.stdin.read()"""
    begin = str(time.time() + 2.5)
    words = [sys.executable, "-c", code, str(tmp_path), begin]
    started = [subprocess.Popen(words, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(6)]
    until = time.monotonic() + 60
    while sum(one.poll() == 3 for one in started) < 5 and time.monotonic() < until:
        time.sleep(0.05)
    statuses = [one.poll() for one in started]
    for one in started:
        one.communicate()
    assert sorted(map(str, statuses)) == ["3"] * 5 + ["None"]


def test_one_that_is_just_looking_too_is_waited_for(tmp_path):
    other = put(tmp_path)
    other.write(holds=False)
    threading.Timer(0.6, other.path.unlink).start()
    take(tmp_path, QUIET)
    assert not other.path.exists()


def test_a_run_that_was_taken_for_dead_writes_no_more(tmp_path):
    first = take(tmp_path, QUIET)
    first.path.unlink()
    second = take(tmp_path, QUIET)
    with pytest.raises(UserError, match="It took the folder after this run had given no sign of life"):
        first.beat()
    second.release()


def test_of_one_that_was_taken_for_dead_and_the_one_that_took_the_folder_one_goes_on(tmp_path, monkeypatch):
    """The first wakes when the second has removed its file, and has not yet said that it holds the folder."""
    first = put(tmp_path, boot="another")
    os.utime(first.path, (time.time() - 61, time.time() - 61))
    woke = []

    def remove_and_let_it_wake(path):
        path.unlink()
        with pytest.raises(UserError, match="It took the folder after this run had given no sign of life"):
            first.beat()
        woke.append(first)

    monkeypatch.setattr(run_lock, "_remove", remove_and_let_it_wake)
    second = take(tmp_path, QUIET)
    assert woke and files(tmp_path) == [second.path.name]


def test_a_lock_that_was_lost_between_two_programs_of_one_process(tmp_path):
    """torchrun takes long to start; another machine has taken this run for dead."""
    first = take(tmp_path, QUIET)
    first.path.unlink()
    taken(tmp_path, first.path).beat()
    assert files(tmp_path) == [first.path.name], "nobody else was there"
    first.path.unlink()
    second = take(tmp_path, QUIET)
    with pytest.raises(UserError, match="It took the folder after"):
        taken(tmp_path, first.path).beat()
    assert files(tmp_path) == [second.path.name]


def test_a_lock_that_somebody_removed_comes_back(tmp_path):
    lock = take(tmp_path, QUIET)
    lock.path.unlink()
    lock.beat()
    with pytest.raises(UserError, match="is held by another run"):
        take(tmp_path, QUIET)
