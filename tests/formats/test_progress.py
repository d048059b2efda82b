"""Progress of a long copy: lines where nobody looks, a bar in a terminal, and nothing for what is short."""

from __future__ import annotations

import io
import re
from collections import Counter
from pathlib import Path

import pytest

from megatron_patch.arguments.conversion import Conversion
from megatron_patch.conversion.convert import convert
from megatron_patch.formats import progress
from megatron_patch.formats.progress import Progress, Waiting, shown
from megatron_patch.preparation.encoding import Settings
from megatron_patch.preparation.merge import merge
from megatron_patch.preparation.pair import preprocess
from megatron_patch.preparation.wudao_split import split_wudao
from tests.launching import GOLDEN

_MINUTES = re.compile(r"([0-9.]+) min so far")


class QuickClock:
    """Seconds that pass at once: what waits gets to see `seconds` of them, however soon it is done."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.passed, self.told = seconds, 0.0, []

    def now(self) -> float:
        return self.passed

    def wait(self, ended: object, seconds: float) -> bool:
        self.passed += seconds
        if self.passed > self.seconds:
            self.passed = 0.0  # the next thing that is waited for begins
            return True
        self.told.append(self.passed)
        return False


@pytest.fixture
def clock(monkeypatch):
    """Twenty minutes for each thing that is waited for."""
    made = QuickClock(1200)
    monkeypatch.setattr(progress, "CLOCK", made)
    return made


def test_no_five_minutes_are_silent_while_nothing_arrives(clock):
    """A rank that waits for a slow disk or other ranks is alive; schedulers take a silent job for a hanging one."""
    stream = io.StringIO()
    with Progress("reading", 4_000_000_000, stream) as shown:
        shown.add(1_000_000_000)
    with Waiting("flushing", stream):
        pass
    lines = stream.getvalue().splitlines()
    counted, waited = lines[: len(lines) // 2], lines[len(lines) // 2 :]
    assert len(counted) >= 4 and re.fullmatch(r"reading: [01].00 of 4.00 GB \(\d+%\), .*", counted[-1]), counted
    minutes = [0.0, *(float(_MINUTES.search(line)[1]) for line in waited)]
    assert minutes[-1] == 20 and max(later - earlier for earlier, later in zip(minutes, minutes[1:])) <= 5


def test_each_part_of_preparation_and_conversion_says_that_it_goes_on(clock, tmp_path, capsys):
    """Every part of a command that reads or writes all of the data has lines of its own."""
    golden = GOLDEN / "hf_mha"
    corpus, settings = GOLDEN / "data" / "corpus.jsonl", Settings(str(golden))
    for name in ("a", "b"):
        preprocess([corpus], tmp_path / name, settings, max_bad_fraction=0.5)
    merge([str(tmp_path / "a"), str(tmp_path / "b")], str(tmp_path / "joined"))
    split_wudao([corpus], tmp_path / "split", max_bad_fraction=0.5)
    convert(Conversion(golden, tmp_path / "megatron", to_hf=False, verify=True))
    said = [line.partition(":")[0] for line in capsys.readouterr().err.splitlines() if "MB/s" in line or "so far" in line]
    every = 1200 / 30
    assert {what: count for what, count in Counter(said).items()} == {
        "tokenizing": 2 * every, "joining": every, "reading": every, "opening the source": every, "writing": every,
        "comparing sums": every, "verifying": every, "flushing": every,
    }  # fmt: skip


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


def test_a_name_with_braces_is_a_name():
    said = io.StringIO()
    assert list(shown(iter("ab"), "tokenizing {}", "samples", of="{x}.json")) == ["a", "b"]
    with Waiting("tokenizing {}", said, of="{x}.json") as waiting:
        assert waiting._line().startswith("tokenizing {x}.json: ")


def test_nothing_else_draws_bars():
    """A bar that is drawn into a job's log is thousands of lines."""
    package = Path(progress.__file__).parents[1]
    drawing = [path for path in package.rglob("*.py") if "import tqdm" in path.read_text(encoding="utf-8")]
    assert [path.relative_to(package).as_posix() for path in drawing] == ["formats/progress.py"]
