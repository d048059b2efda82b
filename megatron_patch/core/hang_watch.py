"""A run that stands still ends, and says which rank held it up, where, and what Python was doing there.

Each rank has a thread that tells the store every few seconds where the main thread is. The last rank, which writes the
log, looks at what all tell; if its own thread is silent, rank 0 does. Where no thread of any rank runs, torchrun ends
them (`processes/heartbeats.py`). The main thread only counts places, so a step takes as long as without this.
"""

from __future__ import annotations

import megatron_patch.core.device  # noqa: F401  prepares megatron-core for this machine

import contextlib
import datetime
import faulthandler
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

import torch

from megatron_patch.core.parallel import Layout
from megatron_patch.language.sentences import in_language
from megatron_patch.processes import notes, place
from megatron_patch.processes.console import tell
from megatron_patch.processes.heartbeats import Heartbeat
from megatron_patch.processes.standstill import Observer, Report, report_of, verdict

_LONGEST_PAUSE = 5.0  # seconds between two reports
_LONG = 5.0  # minutes of one thing after which a line says that it goes on
_ENDED, _LOG = "ended", "log"  # the store's keys for the verdict and for the log file's path


class HangWatch:
    """The thread of this rank. `stop` ends it, before the groups are taken down.

    Args:
        layout: this rank's place.
        minutes: `--distributed-timeout-minutes`.
        log_file: the run's log, on the rank that writes it.
    """

    def __init__(self, layout: Layout, minutes: float, log_file: Path | None) -> None:
        self._rank, self._ranks, self._minutes = layout.rank, layout.world_size, minutes
        self._limit = minutes * 60
        self._pause = min(_LONGEST_PAUSE, self._limit / 6)
        self._observer = Observer(self._limit, longest_look=max(4 * self._pause, self._limit / 2))
        self._beats = 0
        # Other ranks judge first: they look a pause later, and collect stacks for three.
        self._heartbeat = Heartbeat(self._rank, minutes, patience=self._limit + 8 * self._pause + 2)
        self._stop = threading.Event()
        self._store = _own_store() if layout.world_size > 1 else torch.distributed.HashStore()
        if log_file is not None:
            self._store.set(_LOG, str(log_file.resolve()))
        self._rounds = 0
        self._long_place, self._long_since, self._long_lines = -1, 0.0, 0
        self._report()  # so that one that is stopped before its thread's first round is known
        self._threads = [threading.Thread(target=work, name="hang watch", daemon=True) for work in (self._work, self._guard)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stop.set()
        for thread in self._threads:
            thread.join(4 * self._pause)
        self._heartbeat.stop()
        faulthandler.cancel_dump_traceback_later()

    def _work(self) -> None:
        with contextlib.suppress(torch.distributed.DistStoreError, torch.distributed.DistNetworkError, RuntimeError):
            # The store ends with the first node's torchrun. Then this rank's own torchrun ends it.
            while not self._stop.wait(self._pause):
                self._rounds += 1
                self._report()
                if self._rank == self._ranks - 1:
                    self._say_that_it_takes_long()
                if self._store.check([_ENDED]):
                    self._leave()
                now = time.monotonic()
                reports = self._reports() if self._rank in (0, self._ranks - 1) else {}
                guilty = self._observer.look(reports, now) if reports else []
                if guilty and self._judges(now):
                    self._end(reports, guilty, [rank for rank in guilty if self._observer.is_silent(rank, now)])

    def _say_that_it_takes_long(self) -> None:
        """A line every five minutes about what takes so long: reading a checkpoint, preparing data."""
        places, _, what = place.now()
        if places != self._long_place:
            self._long_place, self._long_since, self._long_lines = places, time.monotonic(), 0
        minutes = (time.monotonic() - self._long_since) / 60
        if minutes >= _LONG * (self._long_lines + 1):
            self._long_lines += 1
            line = f"still {what}, for {minutes:.0f} min."
            _print(line)
            self._log(line)

    def _guard(self) -> None:
        """End this rank if the store does not answer its thread for the limit: then nobody hears of this rank any more.

        It counts its own looks, so that a job that was stopped as a whole may go on.
        """
        looks, last = 0, -1
        while not self._stop.wait(self._pause):
            looks, last = (0, self._rounds) if self._rounds != last else (looks + 1, last)
            if looks * self._pause > self._limit + 2 * self._pause:
                line = (
                    f"rank {self._rank} has not reached node 0 for {self._minutes:g} min: that one has ended or stands still, or "
                    "the network between them is cut."
                )
                with _ends():
                    notes.write_verdict(line)
                    tell(f"{in_language(line)}\n{stacks()}")

    def _report(self) -> None:
        self._beats += 1
        places, iteration, what = place.now()
        report = Report(self._beats, places, iteration, what, os.getpid(), socket.gethostname(), place.advanced())
        self._heartbeat.beat(report)
        self._store.set(f"report/{self._rank}", report.as_text())
        # If this thread itself comes to stand still, because the main thread keeps Python's lock in some library, a
        # thread without Python writes the stacks.
        if sys.__stderr__ is not None:
            faulthandler.dump_traceback_later(self._limit + 2 * self._pause, file=sys.__stderr__)

    def _reports(self) -> dict[int, Report]:
        keys = {rank: f"report/{rank}" for rank in range(self._ranks)}
        there = [rank for rank, key in keys.items() if self._store.check([key])]
        return {rank: report_of(text) for rank, text in zip(there, self._store.multi_get([keys[rank] for rank in there]))}

    def _judges(self, now: float) -> bool:
        """Whether this rank speaks for all: the last one does, and rank 0 where that one is silent."""
        last = self._ranks - 1
        return self._rank == last or self._observer.is_silent(last, now)

    def _end(self, reports: dict[int, Report], guilty: list[int], silent: list[int]) -> None:
        """Say who held the run up, collect everyone's stacks, and end this process with status 1."""
        with _ends():  # the main thread cannot be reached
            lines = verdict(reports, guilty, silent, self._minutes)
            notes.write_verdict(lines[0])
            self._store.set(_ENDED, "\n".join(lines))
            _print(*lines)
            stacks_of = self._stacks(awaited=set(range(self._ranks)) - set(silent) - {self._rank})
            lines_of_stacks = [f"rank {rank}'s stacks:\n{text}" for rank, text in sorted(stacks_of.items())]
            _print(*lines_of_stacks)
            self._log(*lines, *lines_of_stacks)  # the last: its disk may be what the run waits for

    def _stacks(self, awaited: set[int]) -> dict[int, str]:
        """The stacks of this rank, and of those of `awaited` that tell theirs in time."""
        keys = {rank: f"stack/{rank}" for rank in awaited}
        until = time.monotonic() + 3 * self._pause + 1
        while time.monotonic() < until and not self._store.check([*keys.values()]):
            time.sleep(0.1)
        told = {rank: self._store.get(key).decode() for rank, key in keys.items() if self._store.check([key])}
        return {self._rank: stacks(), **told}

    def _log(self, *texts: str) -> None:
        """Write into the log file, from whichever rank."""
        if self._store.check([_LOG]):
            with contextlib.suppress(OSError), open(self._store.get(_LOG), "a", encoding="utf-8") as file:
                file.writelines(f"{text}\n" for text in texts)

    def _leave(self) -> None:
        """Hand over this rank's stacks to the one that judges, and end after it."""
        with _ends():
            self._store.set(f"stack/{self._rank}", stacks())
            notes.write_verdict(self._store.get(_ENDED).decode().splitlines()[0])
            time.sleep(4 * self._pause + 2)


def _print(*texts: str) -> None:
    """Write onto the console. Not through `logging`, whose locks the main thread may hold while it stands still."""
    for text in texts:
        tell(in_language(text), sys.stdout)


@contextlib.contextmanager
def _ends() -> Iterator[None]:
    """End this process with status 1 after what is done inside, also where that fails."""
    try:
        yield
    except RuntimeError as error:  # torch's of the store, which ends with the first node's torchrun
        tell(str(error))
    except Exception:
        tell(traceback.format_exc())
    finally:
        os._exit(1)


def stacks() -> str:
    """The Python stacks of this process's threads."""
    # In memory: a folder for temporary files may be full.
    with open(os.memfd_create("stacks"), "w+b") as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        return file.read().decode(errors="backslashreplace").rstrip()


def _own_store() -> torch.distributed.Store:
    """A connection of this thread's own to the store that torchrun listens at: the main thread may wait in another."""
    store = torch.distributed.TCPStore(
        os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, wait_for_workers=False,
        timeout=datetime.timedelta(seconds=60),
    )  # fmt: skip
    return torch.distributed.PrefixStore(f"hang-watch/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
