"""The time that a log line gives an iteration, on a clock and a device of the test's own."""

from __future__ import annotations

import pytest

from megatron_patch.train import loop
from megatron_patch.train.step import StepResult

PASSES, UPDATE = 10.0, 2.0  # seconds of an iteration: until its numbers are known, and what comes then


class Machine:
    """A host that is told an iteration's numbers while the device still updates the weights."""

    def __init__(self, monkeypatch):
        self.now = self.busy_until = 100.0
        monkeypatch.setattr(loop.time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(loop.device, "synchronize", self.wait)

    def wait(self):
        self.now = max(self.now, self.busy_until)

    def iterate(self, window):
        self.wait()
        self.now += PASSES
        self.busy_until = self.now + UPDATE
        window.iterations += 1
        return self.now


@pytest.mark.parametrize("interval", [1, 3])
def test_every_line_counts_as_many_updates_as_iterations(monkeypatch, interval):
    machine = Machine(monkeypatch)
    window, lines = loop._Window(), []
    for _ in range(3):
        known = [machine.iterate(window) for _ in range(interval)][-1]
        lines.append(window.seconds_per_iteration(known))
        window = loop._Window(follows=known)
    machine.wait()
    machine.now += 50.0  # an evaluation, which no line counts
    window = loop._Window()
    known = [machine.iterate(window) for _ in range(interval)][-1]
    lines.append(window.seconds_per_iteration(known))
    assert lines == [PASSES + UPDATE] * 4


def test_a_save_between_two_lines_loses_no_count(monkeypatch):
    """Only the clock stands still for it: overflows and losses are those since the last line."""
    machine = Machine(monkeypatch)
    window = loop._Window()
    for found_inf in (True, False, True, False):
        window.add(StepResult(loss=2.0 + window.iterations, tokens=1, grad_norm=1.0, found_inf=found_inf, loss_scale=1.0))
        if window.skipped == 1 and not found_inf:
            machine.now += 100.0
            window.restart_clock()
    machine.now += 2 * PASSES
    assert window.skipped == 2 and window.losses == [3.0, 3.0]
    assert window.seconds_per_iteration(machine.now) == PASSES
