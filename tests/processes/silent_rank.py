"""A rank whose main thread keeps Python's lock for ever, as one that waits for a page of a mapped file does."""

from __future__ import annotations

import ctypes
import itertools
import os
import threading
import time

from megatron_patch.processes.heartbeats import Heartbeat
from megatron_patch.processes.standstill import Report


def main() -> None:
    """Beat for half a second, and then not any more."""
    heart = Heartbeat(0, minutes=0.01, patience=2.5)

    def beat() -> None:
        for count in itertools.count():
            heart.beat(Report(count, 5, 7, "the step", os.getpid(), "node-0"))
            time.sleep(0.05)

    threading.Thread(target=beat, daemon=True).start()
    time.sleep(0.5)
    ctypes.PyDLL(None).sleep(600)


main()
