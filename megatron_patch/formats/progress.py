"""How far something long is: on a terminal a bar after three seconds, elsewhere a line every thirty seconds.

What takes seconds says nothing. The lines come from a thread of their own, so that a job's log does not fall silent
while one large tensor, a slow disk or another rank is waited for. Platforms end jobs that say nothing for some minutes.
"""

from __future__ import annotations

import resource
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TextIO, TypeVar

from tqdm import tqdm

from megatron_patch.language.sentences import fill, in_language

_T = TypeVar("_T")
_SECONDS = 30.0  # between two lines
_DELAY = 3.0  # seconds until a bar is shown


@dataclass(frozen=True)
class Clock:
    """What the lines go by.

    Attributes:
        now: seconds since some moment.
        wait: waits for an event at most so many seconds; returns whether it has come.
    """

    now: Callable[[], float] = time.monotonic
    wait: Callable[[threading.Event, float], bool] = threading.Event.wait


CLOCK = Clock()


def peak_memory() -> int:
    """The largest resident memory of this process so far, in bytes.

    Linux says it in /proc. getrusage's figure is used elsewhere only: on Linux it begins with the memory of the process
    that started this one.
    """
    status = Path("/proc/self/status")
    lines = status.read_text(encoding="ascii", errors="replace").splitlines() if status.is_file() else []
    for line in lines:
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024


class Waiting:
    """Says again and again that something of which nothing can be counted goes on: `flushing: 5 min so far`.

    Args:
        what: what goes on, for the lines.
        stream: where to say it; standard error by default.
        seconds: between two lines.
        of: what fills the hole of `what`, if it has one.
    """

    def __init__(self, what: str, stream: TextIO | None = None, seconds: float = _SECONDS, *, of: str = "") -> None:
        self._stream, self._clock = stream or sys.stderr, CLOCK
        self._what, self._seconds = fill(what, of), seconds
        self._start = self._clock.now()
        self._ended = threading.Event()
        self._teller: threading.Thread | None = None

    @property
    def _elapsed(self) -> float:
        return self._clock.now() - self._start

    def _line(self) -> str:
        return f"{self._what}: {self._elapsed / 60:.1f} min so far"

    def _tell(self) -> None:
        """Print a line again and again, until it is done."""
        while not self._clock.wait(self._ended, self._seconds):
            print(in_language(self._line()), file=self._stream, flush=True)

    def _begin(self) -> None:
        self._teller = threading.Thread(target=self._tell, name=f"progress of {self._what}", daemon=True)
        self._teller.start()

    def __enter__(self) -> Self:
        self._begin()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._teller is not None:
            self._teller.join()


class Progress(Waiting):
    """Counts bytes, or something else, and shows how far it is. Several threads may count.

    Args:
        what, of: what is done, for the bar and the lines.
        total: bytes in all, an estimate will do; None if nobody knows.
        stream: where to show it; standard error by default.
        seconds: between two lines.
        done: bytes that an earlier run did.
        unit: what is counted, in the plural, if it is not bytes.
    """

    def __init__(
        self, what: str, total: int | None, stream: TextIO | None = None, seconds: float = _SECONDS, *, done: int = 0,
        unit: str = "", of: str = "",
    ) -> None:  # fmt: skip
        super().__init__(what, stream, seconds, of=of)
        self._total, self._unit = total, fill(unit)
        self._lock = threading.Lock()
        self.done = self._before = done
        self._bar = None
        if self._stream.isatty():
            options = dict(mininterval=0.5, delay=_DELAY, leave=False, initial=done)
            counted = dict(unit=f" {self._unit}") if unit else dict(unit="B", unit_scale=True)
            self._bar = tqdm(desc=self._what, total=total, file=self._stream, **options, **counted)

    def add(self, count: int) -> None:
        """Count `count` more bytes as done."""
        with self._lock:
            self.done += count
            if self._bar is not None:
                self._bar.update(count)

    def _line(self) -> str:
        """What is done, speed, and the time that is left if the speed stays."""
        elapsed = max(self._elapsed, 1e-9)
        here = self.done - self._before
        if self._unit:
            rate = here / elapsed
            return f"{self._what}: {self.done} {self._unit}, {round(rate, 1) if rate < 10 else round(rate)} a second"
        speed = here / 1e6 / elapsed
        if self._total is None:
            return f"{self._what}: {self.done / 1e9:.2f} GB, {speed:.0f} MB/s"
        total = max(1, self._total)
        left = elapsed * max(0, total - self.done) / max(1, here)
        return (
            f"{self._what}: {self.done / 1e9:.2f} of {total / 1e9:.2f} GB ({100 * self.done / total:.0f}%), {speed:.0f} MB/s, "
            f"{left:.0f} s left"
        )

    def _begin(self) -> None:
        if self._bar is None:
            super()._begin()

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        if self._bar is not None:
            self._bar.close()


def shown(items: Iterator[_T], what: str, unit: str, *, of: str = "") -> Iterator[_T]:
    """The items; how many have come is shown. The arguments are those of `Progress`."""
    with Progress(what, None, unit=unit, of=of) as progress:
        for item in items:
            yield item
            progress.add(1)
