"""The trackers that a run was asked to use: which of their runs it is, and how they are kept from hindering it.

A tracker must be able to begin when a run begins: what is wrong then (no login, no server) ends it with a sentence.
From then on nothing that a tracker does may hinder the training. Numbers wait in a queue, and a thread hands them over,
again after a while where that fails. A run that goes on goes on in the tracker's run as well, whose name stands in
`trackers.json` beside the checkpoints.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from megatron_patch.config import TrainConfig
from megatron_patch.errors import UserError
from megatron_patch.folders.durable_files import write_text
from megatron_patch.folders.tracker import TRACKER
from megatron_patch.formats.json_files import json_object
from megatron_patch.sinks.sink import Sink
from megatron_patch.sinks.tracker import Kind, TrackedRun, Tracker, asked_for

_LOGGER = logging.getLogger(__name__)
RECORD = "trackers.json"
_MOST_BYTES = 1 << 16  # of the record
_WAITING = 100_000  # numbers of log lines that wait at most
_AGAIN = 30.0  # seconds after which a number that was not taken is handed over again
_PATIENCE = 60.0  # seconds that the end of a run waits for a tracker


def open_trackers(config: TrainConfig, world_size: int, say: Callable[[str], None]) -> list[Sink]:
    """The trackers that the flags ask for, each with its run begun or taken up.

    Args:
        say: takes a line for each, with the place where its run is to be seen.

    Raises:
        UserError: a new run cannot begin there.
    """
    root = Path(config.checkpoint_folder)
    goes_on = (root / TRACKER).is_file()
    found: list[Sink] = []
    for kind, project in asked_for(config.options):
        known_as = _recorded(root, kind, project) if goes_on else None
        settings = {**config.as_dict(), "processes": world_size}
        run = TrackedRun(project, config.name, Path(config.output_path), settings, known_as)
        if (begun := _begun(kind, run)) is None:
            continue
        sink, name, place = begun
        found.append(sink)
        _record(root, kind, project, name)
        if known_as is None:
            say(f"  {kind.title}: run {name}, {place}")
        else:
            say(f"  {kind.title}: going on with run {name}, {place}")
    return found


def _begun(kind: Kind, run: TrackedRun) -> tuple[Sink, str, str] | None:
    """(the tracker, its name of the run, where that is); None where a known one cannot be taken up, with a warning."""
    run.folder.mkdir(parents=True, exist_ok=True)
    sink = TrackerSink(kind.title, kind.make)
    try:
        with _nobody_is_asked():
            name, place = sink.start(run)
    except Exception as error:  # whatever the library raises
        if run.known_as is None:
            raise UserError(
                f"{kind.flag} {run.project}: {kind.title} cannot begin a run ({_reason(error)}); {kind.hint}, "
                "or leave the flag out."
            ) from None
        _LOGGER.warning(f"{kind.title} cannot take up run {run.known_as} ({_reason(error)}); training goes on without it.")
        return None
    return sink, name, place


@contextmanager
def _nobody_is_asked() -> Iterator[None]:
    """Let a library that would ask for a key find no terminal: several processes share it, and a job has none."""
    usual = sys.stdin
    with open(os.devnull, encoding="utf-8") as nothing:
        sys.stdin = nothing
        try:
            yield
        finally:
            sys.stdin = usual


def _reason(error: BaseException) -> str:
    """What a library says, on one line."""
    said = " ".join(str(error).split())
    return f"{type(error).__name__}: {said[:300].rstrip('.')}" if said else type(error).__name__


def _recorded(root: Path, kind: Kind, project: str) -> str | None:
    """The name of the run's run in `project`; None where none is known, or another project was used."""
    path = root / RECORD
    if not path.is_file():
        return None
    entry = json_object(path, _MOST_BYTES).get(kind.library)
    if not isinstance(entry, dict) or entry.get("project") != project or not isinstance(entry.get("run"), str):
        return None
    return entry["run"]


def _record(root: Path, kind: Kind, project: str, name: str) -> None:
    root.mkdir(parents=True, exist_ok=True)
    path = root / RECORD
    entries = json_object(path, _MOST_BYTES) if path.is_file() else {}
    entries[kind.library] = {"project": project, "run": name}
    write_text(path, json.dumps(entries, indent=1, ensure_ascii=False) + "\n")


class TrackerSink(Sink):
    """A tracker behind a queue and a thread of its own, in which the library does everything from its import on.

    So it finds no main thread, and sets no handler of signals: Ctrl-C must go on ending a rank at once.

    Args:
        title: as people call the tracker.
        make: imports the library, and makes the tracker.
        again: seconds after which numbers that were not taken are handed over again.
        patience: seconds that the end of a run waits.
    """

    def __init__(self, title: str, make: Callable[[], Tracker], again: float = _AGAIN, patience: float = _PATIENCE) -> None:
        self.name = self._title = title
        self._make = make
        self._again, self._patience = again, patience
        self._waiting: queue.Queue[tuple[dict[str, float], int, float] | None] = queue.Queue(_WAITING)
        self._answer: queue.Queue[tuple[str, str] | Exception] = queue.Queue()
        self._ending = threading.Event()
        self._failed = self._warned = False
        self._lost = 0  # log lines that were not handed over
        self._thread = threading.Thread(target=self._work, name=title, daemon=True)
        self._run: TrackedRun | None = None

    def start(self, run: TrackedRun) -> tuple[str, str]:
        """Begin the run, or go on with it. Returns (its name for the tracker, where people find it).

        Raises:
            Exception: what the library raises.
        """
        self._run = run
        self._thread.start()
        answer = self._answer.get()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def numbers(self, values: Mapping[str, float], iteration: int, samples: int) -> None:
        """Put the numbers into the queue; where it is full they are dropped, and counted."""
        try:
            self._waiting.put_nowait(({**values, "consumed-samples": samples}, iteration, time.time()))
        except queue.Full:
            self._lost += 1

    def close(self) -> None:
        """Hand over what waits and end the tracker's run, for a while; then leave it, with a warning."""
        self._failed = sys.exc_info()[1] is not None  # an error is on its way out of the run
        self._ending.set()
        try:
            self._waiting.put_nowait(None)
        except queue.Full:
            self._lost += 1
        self._thread.join(self._patience)
        lost = self._lost + sum(one is not None for one in list(self._waiting.queue))
        if self._thread.is_alive():
            self._warned = True  # whatever it meets from now on
            _LOGGER.warning(
                f"{self._title} has not answered for {self._patience:.0f} s and may lack the run's last numbers; "
                "TensorBoard's files have them."
            )
        elif lost:
            _LOGGER.warning(f"{self._title} lacks {lost} of the run's log lines; TensorBoard's files have them.")

    def _work(self) -> None:
        assert self._run is not None
        try:
            tracker = self._make()
            self._answer.put(tracker.start(self._run))
        except Exception as error:  # whatever the library raises; `start` raises it
            self._answer.put(error)
            return
        while (item := self._waiting.get()) is not None:
            while not self._handed_over(tracker.log, *item):
                if self._ending.wait(self._again):
                    self._lost += 1
                    return
        if not self._handed_over(tracker.finish, self._failed):
            self._lost += 1

    def _handed_over(self, call: Callable[..., None], *values: object) -> bool:
        try:
            call(*values)
        except Exception as error:  # whatever the library raises; the run goes on
            if not self._warned:
                _LOGGER.warning(
                    f"{self._title} does not take the run's numbers ({_reason(error)}); training goes on. "
                    "It gets them later if it can."
                )
            self._warned = True
            return False
        return True
