"""Which rank torchrun ends: one whose heart has stopped, by torchrun's own looks."""

from __future__ import annotations

import os

import pytest

from megatron_patch.processes import heartbeats, notes
from megatron_patch.processes.heartbeats import Heartbeat, SilentRanks
from megatron_patch.processes.standstill import Report

PATIENCE = 10.0


class Job:
    """Two ranks, and torchrun's looks at them, one a second."""

    def __init__(self):
        self.hearts, self.ended, self.count = [Heartbeat(rank, 0.1, PATIENCE) for rank in (0, 1)], [], 0
        self.torchrun = SilentRanks(1.0, self.ended.append)

    def look(self, times: int, beating: tuple[int, ...]):
        for _ in range(times):
            self.count += 1
            for rank in beating:
                self.hearts[rank].beat(Report(self.count, 5, 7, "the step", 100 + rank, "node-0"))
            self.torchrun.look()
        return self.ended


@pytest.fixture
def job():
    with notes.folder():
        yield Job()


def test_only_the_one_whose_heart_has_stopped_is_ended(job, capsys):
    assert job.look(30, beating=(0, 1)) == []
    assert job.look(10, beating=(0,)) == []
    assert job.look(1, beating=(0,)) == [101]
    said = "rank 1 (process 101 on node-0) has given no sign of life for 0.1 min"
    assert notes.verdict().startswith(said) and capsys.readouterr().err.startswith(said)


def test_what_a_rank_has_said_of_the_end_stays(job, capsys):
    """It judges, and its log's disk is what it waits for."""
    job.look(1, beating=(0, 1))
    notes.write_verdict("rank 1 stands still.")
    assert job.look(11, beating=(0,)) == [101] and notes.verdict() == "rank 1 stands still."


def test_whoever_has_stopped_its_watch_is_left_alone(job):
    job.look(1, beating=(0, 1))
    for heart in job.hearts:
        heart.stop()
    assert job.look(50, beating=()) == []


def test_on_a_disk_that_takes_no_notes_silence_means_nothing(job, monkeypatch):
    job.look(1, beating=(0, 1))

    def refuse(*_):
        raise OSError("Read-only file system")

    monkeypatch.setattr(os, "utime", refuse)
    assert job.look(50, beating=()) == []


def test_another_s_process_is_not_killed(monkeypatch):
    monkeypatch.setattr(os, "kill", lambda *_: pytest.fail("killed"))
    heartbeats._kill(os.getppid())
    heartbeats._kill(1)
