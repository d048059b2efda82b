"""What a log line says: the time of an iteration, on a clock and a device of the test's own, and overflows."""

from __future__ import annotations

import pytest

from megatron_patch.train import loop
from megatron_patch.train.state import StepResult

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
    window.restart_clock()
    known = [machine.iterate(window) for _ in range(interval)][-1]
    lines.append(window.seconds_per_iteration(known))
    assert lines == [PASSES + UPDATE] * 4


def test_a_line_s_loss_is_the_mean_of_the_iterations_that_learnt():
    window = loop._Window()
    for loss, tokens, found_inf in ((1.0, 8, False), (9.0, 8, True), (4.0, 8, False), (0.0, 0, False)):
        window.add(StepResult(loss, tokens, grad_norm=1.0, found_inf=found_inf, loss_scale=1.0))
    assert (window.loss, window.skipped, window.iterations) == (2.5, 1, 4)


def test_a_save_between_two_lines_loses_no_count():
    """Only the clock stands still for it: the overflows of a line are those of all its iterations."""
    window = loop._Window()
    overflow = StepResult(1.0, 8, grad_norm=float("inf"), found_inf=True, loss_scale=1.0)
    window.add(overflow)
    window.restart_clock()
    window.add(overflow)
    assert (window.skipped, window.iterations) == (2, 1)
