"""When a run stops: by itself, on a clock of the test's own, after so many iterations, or when it is asked to."""

from __future__ import annotations

import os
import signal

import pytest

from megatron_patch.config import Options
from megatron_patch.train import stopping
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
