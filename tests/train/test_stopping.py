"""When a run stops by itself, on a clock of the test's own."""

from __future__ import annotations

import pytest

from megatron_patch.config import Options
from megatron_patch.train import loop
from tests.tiny import tiny_config


@pytest.mark.parametrize("minutes, stops_at", [(1.0, 60), (0.5, 30), (90.0, 5400)])
def test_minutes_are_minutes(alone, monkeypatch, minutes, stops_at):
    now = 1000.0
    monkeypatch.setattr(loop.time, "monotonic", lambda: now)
    stop = loop._StopRequest(tiny_config(options=Options(exit_duration_in_mins=minutes)))
    now += stops_at - 1
    assert not stop.requested()
    now += 2
    assert stop.requested()
