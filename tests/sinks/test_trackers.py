"""Weights & Biases, SwanLab and MLflow get a run's numbers, and never hinder it. The real libraries, without a network.

Of the three the extra `test` has wandb; for the others the test is skipped by name where they are not installed.
"""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path

import pytest

from megatron_patch.arguments.ranges import option_findings
from megatron_patch.config import Options
from megatron_patch.errors import UserError
from megatron_patch.folders.tracker import write_tracker
from megatron_patch.sinks import tracker
from megatron_patch.sinks.tracker import KINDS, Kind, TrackedRun
from megatron_patch.sinks.tracking import RECORD, TrackerSink, open_trackers
from tests.sinks import offline_files
from tests.tiny import tiny_config

OFFLINE = {"WANDB_MODE": "offline", "SWANLAB_MODE": "offline", "WANDB_SILENT": "true"}


@pytest.mark.parametrize("kind", KINDS, ids=[kind.library for kind in KINDS])
def test_a_run_that_goes_on_goes_on_in_the_tracker_s_run(kind, tmp_path, monkeypatch):
    pytest.importorskip(kind.library)
    for name, value in OFFLINE.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    options = Options(**{kind.option: "a-project"})
    config, said = tiny_config(output_path=str(tmp_path), options=options), []

    def start(first: int, last: int) -> None:
        (sink,) = open_trackers(config, 1, said.append)
        for iteration in range(first, last + 1):
            sink.numbers({"lm loss": 1 / iteration, "grad-norm": float("nan")}, iteration, 2 * iteration)
        sink.close()

    start(1, 4)
    write_tracker(config.checkpoint_folder, "2")  # its last checkpoint; iterations 3 and 4 are done again
    time.sleep(1.0)  # wandb names what it writes offline by the second
    start(3, 6)
    ((run, curves),) = getattr(offline_files, kind.library)(tmp_path).items()
    assert curves["lm loss"] == pytest.approx({iteration: 1 / iteration for iteration in range(1, 7)})
    assert curves["consumed-samples"] == {iteration: 2 * iteration for iteration in range(1, 7)}
    assert [f"{kind.title}: run {run}, " in said[0], f"{kind.title}: going on with run {run}, " in said[1]] == [True, True]


def test_without_a_checkpoint_a_run_begins_anew_in_the_tracker(tmp_path, monkeypatch):
    """Also under another project's name: a run is known by both."""
    known = []
    monkeypatch.setattr(Kind, "make", lambda kind: Recorded(known))
    config = tiny_config(output_path=str(tmp_path), options=Options(wandb_project="p", mlflow_experiment="e"))
    other = tiny_config(output_path=str(tmp_path), options=Options(wandb_project="other", mlflow_experiment="e"))
    for asked in (config, config, other):
        for sink in open_trackers(asked, 1, lambda line: None):
            sink.close()
        if asked is config and len(known) == 4:
            write_tracker(config.checkpoint_folder, "2")
    assert known == [None, None, None, None, None, "name 3"]
    assert Path(config.checkpoint_folder, RECORD).is_file()


class Recorded:
    """A tracker that keeps what it is told; each start gets a name of its own."""

    def __init__(self, known: list[str | None]) -> None:
        self.known = known

    def start(self, run: TrackedRun) -> tuple[str, str]:
        self.known.append(run.known_as)
        return f"name {len(self.known) - 1}", "somewhere"

    def log(self, values, iteration, seconds) -> None:
        pass

    def finish(self, failed) -> None:
        pass


class Unwilling(Recorded):
    """A tracker whose network is gone: the first `failures` calls fail."""

    def __init__(self, failures: int) -> None:
        super().__init__([])
        self.failures, self.got, self.ended = failures, [], None

    def log(self, values, iteration, seconds) -> None:
        self.failures -= 1
        if self.failures >= 0:
            raise ConnectionError("no route to host\nand more")
        self.got.append(iteration)

    def finish(self, failed) -> None:
        self.ended = failed


def started(tracker: Unwilling, **settings: float) -> TrackerSink:
    sink = TrackerSink("Tracker", lambda: tracker, **settings)
    sink.start(TrackedRun("p", "NAME", Path(), {}, None))
    return sink


def warnings(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def test_a_tracker_that_fails_for_a_while_gets_everything_later_and_one_line_says_so(caplog):
    unwilling = Unwilling(failures=3)
    sink = started(unwilling, again=0.01)
    for iteration in range(5):
        sink.numbers({}, iteration, 0)
    while len(unwilling.got) < 5:
        sink._thread.join(0.01)
    sink.close()
    assert unwilling.got == list(range(5)) and unwilling.ended is False
    assert warnings(caplog) == [
        "Tracker does not take the run's numbers (ConnectionError: no route to host and more); training goes on. "
        "It gets them later if it can."
    ]


def test_a_tracker_that_is_gone_does_not_keep_a_run_from_ending(caplog):
    """One that raises, and one that never returns; a run's error is told to one that listens."""
    sink = started(Unwilling(failures=1 << 30), again=3600)
    sink.numbers({}, 1, 0)
    sink.numbers({}, 2, 0)
    sink.close()
    assert "Tracker lacks 2 of the run's log lines" in warnings(caplog)[-1]
    stuck, release = Unwilling(failures=0), threading.Event()
    stuck.log = lambda *_: release.wait()
    sink = started(stuck, patience=0.05)
    sink.numbers({}, 1, 0)
    sink.close()
    assert "Tracker has not answered for 0 s" in warnings(caplog)[-1]
    release.set()
    ended = Unwilling(failures=0)
    sink = started(ended)
    try:
        raise RuntimeError("the run's")
    except RuntimeError:
        sink.close()
    assert ended.ended is True


def test_a_run_that_cannot_begin_in_a_tracker_is_refused_and_one_that_goes_on_is_not(tmp_path, monkeypatch, caplog):
    def start(tracker: Recorded, run: TrackedRun) -> tuple[str, str]:
        raise PermissionError("api_key not configured")

    known: list[str | None] = []
    monkeypatch.setattr(Kind, "make", lambda kind: Recorded(known))
    config = tiny_config(output_path=str(tmp_path), options=Options(swanlab_project="p"))
    (sink,) = open_trackers(config, 1, lambda line: None)
    sink.close()
    monkeypatch.setattr(Recorded, "start", start)
    with pytest.raises(UserError, match="^--swanlab-project p: SwanLab cannot begin a run .*api_key.*; run `swanlab login`"):
        open_trackers(config, 1, lambda line: None)
    write_tracker(config.checkpoint_folder, "2")
    assert open_trackers(config, 1, lambda line: None) == [] and "cannot take up run name 0" in warnings(caplog)[-1]


def test_a_library_that_is_not_installed_is_a_finding_before_a_run_starts(tmp_path, monkeypatch):
    """A folder of the library's name, which wandb leaves in a working directory, is no library."""
    (tmp_path / "no_such_library").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(tracker, "KINDS", (Kind("wandb_project", "no_such_library", "W", ""),))
    (finding,) = option_findings("pretrain", Options(wandb_project="p"), lambda flag: False)
    wanted = "no_such_library is not installed: run pip install 'megatron-patch[no_such_library]', or remove the flag."
    assert finding == ("--wandb-project", "p", wanted)
