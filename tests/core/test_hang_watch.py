"""The thread that watches a rank: what it says on a clock of the test's own, and that it ends whatever is refused."""

from __future__ import annotations

import megatron_patch.core.device  # noqa: F401, I001

import os
import sys
import tempfile
from types import SimpleNamespace

import pytest

from megatron_patch.core import hang_watch
from megatron_patch.core.hang_watch import HangWatch
from megatron_patch.processes import notes, place

MINUTES = 10.0


@pytest.fixture
def watch(tmp_path):
    """Of the only rank; its threads have ended, so that the test does their work."""
    (tmp_path / "train.log").touch()
    one = HangWatch(SimpleNamespace(rank=0, world_size=1), MINUTES, tmp_path / "train.log")
    one.stop()
    return one


def test_what_takes_long_is_said_every_five_minutes(watch, monkeypatch, capsys, tmp_path):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(hang_watch, "time", SimpleNamespace(monotonic=lambda: clock.now))

    def hour(what):
        """The minutes of an hour at one place in which it speaks."""
        place.move(what)
        began, told = clock.now, []
        while clock.now < began + 3600:
            watch._say_that_it_takes_long()
            told += [((clock.now - began) / 60, line) for line in capsys.readouterr().out.splitlines()]
            clock.now += 5
        return told

    wanted = [(float(minutes), f"still reading the data, for {minutes} min.") for minutes in range(5, 60, 5)]
    assert hour("reading the data") == wanted
    assert [at for at, _ in hour("reading a checkpoint")] == [at for at, _ in wanted], "each place counts anew"
    assert (tmp_path / "train.log").read_text().splitlines()[: len(wanted)] == [line for _, line in wanted]


def judge(watch):
    watch._end({0: hang_watch.Report(1, 5, 7, "the step", os.getpid(), "node-0")}, [0], [])


def leave(watch):
    watch._store.set("ended", "rank 1 stands still.")
    watch._leave()


def guard(watch):
    watch._stop.clear()
    watch._pause = 0.001
    watch._guard()


@pytest.mark.parametrize("end", [judge, leave, guard])
def test_a_run_that_stands_still_ends_where_no_file_can_be_written(end, watch, monkeypatch, tmp_path, capfd):
    """Neither temporary files, nor notes, nor the log."""
    (tmp_path / "train.log").unlink()
    (tmp_path / "train.log").mkdir()
    with monkeypatch.context() as patched:  # pytest makes temporary files when it takes the test down
        patched.setenv(notes._FOLDER, str(tmp_path / "gone"))
        patched.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
        patched.setattr(watch, "_limit", 0.01)
        patched.setattr(hang_watch, "time", SimpleNamespace(monotonic=lambda: 0.0, sleep=lambda _: None))
        patched.setattr(os, "_exit", sys.exit)
        with pytest.raises(SystemExit) as left:
            end(watch)
    assert left.value.code == 1
    said = capfd.readouterr()
    assert "what ranks note for torchrun is not known or not complete" in said.err and "Traceback" not in said.err
    stacks = watch._store.get("stack/0").decode() if end is leave else said.out + said.err
    assert f'File "{__file__}"' in stacks


def test_torchrun_sees_its_heart_until_it_ends(tmp_path):
    with notes.folder():
        one = HangWatch(SimpleNamespace(rank=0, world_size=1), MINUTES, None)
        first = notes.read("beat.0")
        one._report()
        assert first and notes.read("beat.0") != first
        one.stop()
        assert notes.read("beat.0") is None
