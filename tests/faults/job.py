"""A training job as a user starts it: the documented script on a tiny case, its lines as they come, its processes."""

from __future__ import annotations

import os
import re
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from tests.launching import GOLDEN, PRETRAIN, PRETRAIN_ARGUMENTS, environment, hear_signals

ITERATIONS, EVERY = 96, 3  # of a whole run, and of two saves
TOKENS = 2 * 32  # of an iteration
CASE = dict(
    MODEL_SIZE="tiny", DATASET_PATH=GOLDEN / "data" / "corpus_text_document", GLOBAL_BATCH_SIZE=2, WARMUP_TOKENS=0,
    TRAIN_TOKENS=ITERATIONS * TOKENS, SAVE_INTERVAL=EVERY,
)  # fmt: skip
FLAGS = ("--num-workers", 1, "--eval-interval", 0)
_LINE = re.compile(r" iteration +(\d+)/ .* lm loss: (\S+) ")
_SAVED = re.compile(r"saved checkpoint of iteration (\d+) ")
_WENT_ON = re.compile(r"going on from iteration (\d+)")


def command(output: Path, *flags: object, iterations: int = ITERATIONS) -> list[str]:
    """The documented command of the case, as words."""
    return ["dash", str(PRETRAIN), *map(str, arguments(output, *flags, iterations=iterations))]


def arguments(output: Path, *flags: object, iterations: int = ITERATIONS, **changed: object) -> list[object]:
    """What the script takes."""
    values = {**PRETRAIN_ARGUMENTS, **CASE, "TRAIN_TOKENS": iterations * TOKENS, **changed, "OUTPUT_BASEPATH": output}
    return [*values.values(), *FLAGS, *flags]


def losses_in(said: str) -> dict[int, str]:
    """Iteration → loss, as the log lines have them."""
    return {int(number): loss for number, loss in _LINE.findall(said)}


class Job:
    """A started command.

    Attributes:
        process: what was started; the script becomes torchrun, so without a wrapper this is torchrun.
        lines: what it has said so far, standard error among it.
    """

    def __init__(self, words: Sequence[str], processes: int = 1, job: Mapping[str, object] | None = None) -> None:
        self.words = list(words)
        self.began = time.monotonic()
        self.process = subprocess.Popen(
            words, env=environment(processes, job), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            errors="backslashreplace", start_new_session=True, preexec_fn=hear_signals,
        )  # fmt: skip
        self.lines: list[str] = []
        self.first_step: float | None = None  # seconds from the start
        self._seen: dict[int, psutil.Process] = {}
        self._news = threading.Condition()
        self._ended = False
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._news:
                self.lines.append(line)
                if self.first_step is None and _LINE.search(line):
                    self.first_step = time.monotonic() - self.began
                self._news.notify_all()
        with self._news:
            self._ended = True
            self._news.notify_all()

    @property
    def said(self) -> str:
        """Everything so far."""
        return "".join(self.lines)

    def losses(self) -> dict[int, str]:
        """Iteration → loss, as the log lines have them."""
        return losses_in(self.said)

    def last_saved(self) -> int:
        """The last iteration whose checkpoint was said to be there; 0 before the first."""
        return max(map(int, _SAVED.findall(self.said)), default=0)

    def went_on_from(self) -> int:
        """The iteration from which it went on; 0 for a run that began."""
        return max(map(int, _WENT_ON.findall(self.said)), default=0)

    def wait_for(self, text: str, timeout: float = 240, after: int = 0) -> int:
        """Wait until a line holds `text` (a regular expression); returns the number of lines up to it.

        after: so many lines do not count.

        Raises:
            AssertionError: the job has ended without it, or took longer; with what it said.
        """
        sought, place, until = re.compile(text), after, time.monotonic() + timeout
        with self._news:
            while True:
                while place < len(self.lines):
                    place += 1
                    if sought.search(self.lines[place - 1]):
                        return place
                left = until - time.monotonic()
                assert left > 0 and not self._ended, f"no line with {text!r}:\n{self.said[-4000:]}"
                self._news.wait(min(left, 1))

    def wait_for_iteration(self, number: int) -> None:
        """Wait until the log has that iteration's line."""
        self.wait_for(rf" iteration +{number}/ ")

    def everyone(self) -> list[psutil.Process]:
        """All processes of the job that are there or were at an earlier call: script or torchrun, ranks, loaders."""
        try:
            first = psutil.Process(self.process.pid)
            for one in (first, *first.children(recursive=True)):
                self._seen.setdefault(one.pid, one)
        except psutil.NoSuchProcess:
            pass
        return list(self._seen.values())

    def ranks(self) -> list[psutil.Process]:
        """The training processes, in the order of their ranks."""
        found = {}
        for one in self.everyone():
            try:
                if one.is_running() and "LOCAL_RANK" in one.environ() and "LOCAL_RANK" not in _environ(one.parent()):
                    found[int(one.environ()["RANK"])] = one
            except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
                continue
        return [found[number] for number in sorted(found)]

    def launcher(self) -> psutil.Process:
        """torchrun."""
        parent = self.ranks()[0].parent()
        assert parent is not None
        return parent

    def finish(self, timeout: float = 240) -> int:
        """Wait for the end, and for the last line; returns the status as a shell has it."""
        status = self.process.wait(timeout)
        self._reader.join(timeout)
        return status if status >= 0 else 128 - status

    def survivors(self, within: float = 5) -> list[psutil.Process]:
        """Which of the processes seen are still there after so many seconds."""
        gone, alive = psutil.wait_procs(self._seen.values(), timeout=within)
        return [one for one in alive if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]

    def end(self) -> None:
        """Kill whatever is left of it."""
        for one in self.everyone():
            try:
                one.kill()
            except psutil.NoSuchProcess:
                continue
        self.process.wait()
        self._reader.join(20)


def _environ(process: psutil.Process | None) -> dict[str, str]:
    return process.environ() if process is not None else {}


def run_folder(output: Path) -> Path:
    """The one folder of checkpoints below OUTPUT_BASEPATH."""
    (found,) = (output / "checkpoint").iterdir()
    return found


def is_root() -> bool:
    """Whether tests may mount and make networks."""
    return os.geteuid() == 0
