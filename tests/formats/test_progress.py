"""Progress of a long copy: lines where nobody looks, a bar in a terminal, and nothing for what is short."""

from __future__ import annotations

import io
import time

from megatron_patch.formats import progress
from megatron_patch.formats.progress import Progress


def test_lines_come_also_while_nothing_arrives():
    """A rank that waits for a slow disk or other ranks is alive; schedulers take a silent job for a hanging one."""
    stream = io.StringIO()
    with Progress("reading", 4_000_000_000, stream, seconds=0.01) as shown:
        shown.add(1_000_000_000)
        while stream.getvalue().count("\n") < 3:
            time.sleep(0.001)
    told = stream.getvalue()
    assert all(line.startswith("reading: 1.00 of 4.00 GB (25%), ") for line in told.splitlines())
    time.sleep(0.05)
    assert stream.getvalue() == told, "it is over"


def test_what_takes_seconds_says_nothing(monkeypatch):
    """Not as lines, and not as a bar; a bar that is shown goes away at the end."""
    pipe, terminal = io.StringIO(), io.StringIO()
    terminal.isatty = lambda: True
    for stream in (pipe, terminal):
        with Progress("reading", 10, stream) as shown:
            shown.add(10)
        assert stream.getvalue() == ""
    monkeypatch.setattr(progress, "_DELAY", 1e-9)
    with Progress("reading", 10, terminal) as shown:
        shown.add(4)
        shown._bar.refresh()
        assert "reading:  40%" in terminal.getvalue()
    assert terminal.getvalue().endswith("\r")
