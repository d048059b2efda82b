"""When a run stops: by itself, on a clock of the test's own, after so many iterations, or when it is asked to."""

from __future__ import annotations

import os
import signal
from types import SimpleNamespace

import pytest

from megatron_patch.config import Options
from megatron_patch.processes import notes
from megatron_patch.train import saves, stopping
from tests.tiny import tiny_config


@pytest.fixture(autouse=True)
def handler():
    """What SIGTERM does to the tests' own process afterwards."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("minutes, stops_at", [(1.0, 60), (0.5, 30), (90.0, 5400)])
def test_minutes_are_minutes(alone, monkeypatch, minutes, stops_at):
    now = 1000.0
    monkeypatch.setattr(stopping.time, "monotonic", lambda: now)
    stop = stopping.StopRequest(tiny_config(options=Options(exit_duration_in_mins=minutes)))
    now += stops_at - 1
    assert not stop.requested()
    now += 2
    assert stop.requested() and stop.reason == "--exit-duration-in-mins"


@pytest.mark.parametrize("interval, answers", [(1, [True]), (3, [False, False, True]), (0, [False] * 5)])
def test_so_many_iterations_of_this_process_are_done(alone, interval, answers):
    stop = stopping.StopRequest(tiny_config(options=Options(exit_interval=interval)))
    assert [stop.requested() for _ in answers] == answers


def test_a_signal_ends_the_iteration_in_which_it_comes(alone):
    stop = stopping.StopRequest(tiny_config())
    assert not stop.requested()
    os.kill(os.getpid(), signal.SIGTERM)
    assert stop.requested() and stop.reason == "SIGTERM"


def test_torchrun_hears_by_which_signal_a_run_was_stopped(alone, tmp_path, monkeypatch):
    monkeypatch.setenv("MEGATRON_PATCH_NOTES", str(tmp_path))
    stop = stopping.StopRequest(tiny_config(options=Options(exit_interval=1)))
    assert stop.requested()
    stop.tell_torchrun()
    assert notes.stopping_signal() is None, "a run that stops by a flag ends with status 0"
    os.kill(os.getpid(), signal.SIGTERM)
    stop.tell_torchrun()
    assert notes.stopping_signal() is signal.SIGTERM


@pytest.mark.parametrize("step, said", [(9.0, []), (11.0, ["--exit-grace-seconds 62"])])
def test_the_time_after_a_signal_is_a_step_s_and_a_save_s(step, said):
    lines: list[str] = []
    options = Options(exit_grace_seconds=30)
    state = SimpleNamespace(config=SimpleNamespace(options=options), step_seconds=step, has_saved=False)
    for _ in range(2):
        saves._warn_of_grace(state, SimpleNamespace(line=lines.append), 20.0)
    assert len(lines) == len(said) and all(flag in line for flag, line in zip(said, lines))
