"""The live line of a terminal: what it says, that it keeps to the terminal's width, and that a real run shows it."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import struct
import subprocess
import termios
from pathlib import Path

import pytest

from megatron_patch.language import choice
from megatron_patch.sinks import live_line
from megatron_patch.sinks.live_line import LiveLine, columns_of, duration, wants_live_line
from megatron_patch.sinks.sink import RunStart
from tests.launching import GOLDEN, PRETRAIN, PRETRAIN_ARGUMENTS, ROOT, environment
from tests.tiny import tiny_config

STEPS = 6


def at_half(monkeypatch, total: int) -> LiveLine:
    """A line after half of `total` iterations, of two seconds each."""
    clock = [0.0]
    monkeypatch.setattr(live_line.time, "monotonic", lambda: clock[0])
    line = LiveLine(io.StringIO())
    line.began(RunStart(tiny_config(), Path(), 0, 0, total, 1))
    for iteration in range(1, total // 2 + 1):
        clock[0] += 2.0
        line.step(iteration, 2.5)
    line.numbers({"tokens-per-second": 10923.4, "learning-rate": 1e-5, "lm loss": 2.5}, total // 2, 8)
    return line


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_line_has_what_fits_and_never_more(language, monkeypatch):
    monkeypatch.setattr(choice, "spoken", lambda: language)
    monkeypatch.setattr("megatron_patch.language.sentences.spoken", lambda: language)
    line = at_half(monkeypatch, 6000)
    for width in range(12, 200):
        assert columns_of(line.text(width)) <= width
    narrow, wide = line.text(79), line.text(119)
    for shown in ("3000/6000", "2.5000", "10,923"):
        assert shown in narrow and shown in wide
    assert ("1 h 40 min left" in narrow) == (language == "en") and ("剩余 1 小时 40 分" in narrow) == (language == "zh")
    assert "1.00e-05" in wide and "1.00e-05" not in narrow
    bar = wide[wide.index("[") + 1 : wide.index("]")]  # StringIO has no UTF-8
    assert len(bar) >= 20 and bar.count("#") == round(len(bar) / 2)


def test_a_duration_is_told_in_two_units():
    assert [duration(seconds) for seconds in (11.6, 200, 4980, 187200)] == ["12 s", "3 min 20 s", "1 h 23 min", "2 d 4 h"]


def test_auto_is_a_terminal_outside_notebooks(monkeypatch):
    terminal, pipe = io.StringIO(), io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("JPY_PARENT_PID", raising=False)
    assert [wants_live_line("auto", terminal), wants_live_line("auto", pipe), wants_live_line("true", pipe)] == [
        True,
        False,
        True,
    ]
    monkeypatch.setenv("JPY_PARENT_PID", "1")
    assert not wants_live_line("auto", terminal) and not wants_live_line("false", terminal)


def test_a_run_in_a_terminal_shows_the_line_and_keeps_megatron_s_in_the_file(tmp_path):
    """The documented script in a terminal of 80 columns."""
    values = PRETRAIN_ARGUMENTS | dict(
        MODEL_SIZE="tiny", DATASET_PATH=GOLDEN / "data" / "corpus_text_document", OUTPUT_BASEPATH=tmp_path,
        TRAIN_TOKENS=STEPS * 4 * 32, WARMUP_TOKENS=0,
    )  # fmt: skip
    words = ["dash", str(PRETRAIN), *map(str, values.values()), "--num-workers=0", f"--eval-interval={STEPS}", "--eval-iters=1"]
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    job = {"TERM": "xterm", "JPY_PARENT_PID": ""}
    run_environment = {name: value for name, value in environment(1, job).items() if name != "JPY_PARENT_PID"}
    process = subprocess.Popen(words, stdout=theirs, stderr=theirs, env=run_environment, cwd=ROOT)
    os.close(theirs)
    shown = read_all(ours)
    assert process.wait(300) == 0, shown[-3000:]
    states = [state for state in shown.replace("\n", "\r").split("\r") if state.startswith(f"iteration {STEPS}/")]
    (log,) = tmp_path.glob("log/*/train.log")
    assert states and all(columns_of(state) < 80 and "loss " in state for state in states)
    assert " tokens/s  " in states[-1] and states[-1].rstrip().endswith("0 s left")
    assert "elapsed time per iteration" not in shown and f"validation at iteration {STEPS}: loss" in shown
    assert log.read_text(encoding="utf-8").count("elapsed time per iteration") == STEPS


def read_all(terminal: int) -> str:
    """What was written to a terminal, until nobody has it open any more."""
    found = b""
    while True:
        try:
            part = os.read(terminal, 65536)
        except OSError:  # Linux says EIO when the last one has closed the other end
            part = b""
        if not part:
            os.close(terminal)
            return found.decode("utf-8")
        found += part
