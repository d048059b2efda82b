"""How far a long copy is: on a terminal a bar after three seconds, elsewhere a line every thirty seconds.

What takes seconds says nothing. The lines come from a thread of their own, so that a job's log does not fall silent
while one large tensor, a slow disk or another rank is waited for.
"""

from __future__ import annotations

import resource
import sys
import threading
import time
from pathlib import Path
from typing import TextIO

from tqdm import tqdm

from megatron_patch.language.sentences import fill, in_language

_SECONDS = 30.0  # between two lines
_DELAY = 3.0  # seconds until a bar is shown


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


class Progress:
    """Counts bytes, and shows how far the copy is. Several threads may count.

    Args:
        what: what is copied, for the bar and the lines.
        total: bytes in all; an estimate will do.
        stream: where to show it; standard error by default.
        seconds: between two lines.
    """

    def __init__(self, what: str, total: int, stream: TextIO | None = None, seconds: float = _SECONDS) -> None:
        self._stream = stream or sys.stderr
        self._what, self._total, self._seconds = fill(what), max(1, total), seconds
        self._lock = threading.Lock()
        self._start = time.monotonic()
        self.done = 0
        self._bar = None
        self._ended = threading.Event()
        self._teller: threading.Thread | None = None
        if self._stream.isatty():
            options = dict(unit="B", unit_scale=True, mininterval=0.5, delay=_DELAY, leave=False)
            self._bar = tqdm(desc=self._what, total=total, file=self._stream, **options)

    def add(self, count: int) -> None:
        """Count `count` more bytes as done."""
        with self._lock:
            self.done += count
            if self._bar is not None:
                self._bar.update(count)

    def _tell(self) -> None:
        """Print a line again and again, until the copy is done."""
        while not self._ended.wait(self._seconds):
            self._line()

    def _line(self) -> None:
        """Print bytes done, speed, and the time that is left if the speed stays."""
        elapsed = time.monotonic() - self._start
        left = elapsed * max(0, self._total - self.done) / max(1, self.done)
        line = (
            f"{self._what}: {self.done / 1e9:.2f} of {self._total / 1e9:.2f} GB ({100 * self.done / self._total:.0f}%), "
            f"{self.done / 1e6 / elapsed:.0f} MB/s, {left:.0f} s left"
        )
        print(in_language(line), file=self._stream, flush=True)

    def __enter__(self) -> Progress:
        if self._bar is None:
            self._teller = threading.Thread(target=self._tell, name=f"progress of {self._what}", daemon=True)
            self._teller.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._teller is not None:
            self._teller.join()
        if self._bar is not None:
            self._bar.close()
