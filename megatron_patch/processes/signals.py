"""What SIGTERM and SIGINT do before and after a process has something to save. Imports no torch."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

STOPS = (signal.SIGTERM, signal.SIGINT)


def end_at_once() -> None:
    """Let SIGINT end this process without a traceback, as SIGTERM does: it has nothing to save yet.

    A process that was started with SIGINT ignored goes on ignoring it. Signals that `held` kept from the process since
    its birth come now.
    """
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Keep SIGTERM and SIGINT from this thread inside; they come afterwards.

    What is started inside, process or thread, has them kept from it until it asks for them.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_when_told_by(parent: int) -> None:
    """Let SIGTERM from the process `parent`, and from no other, end this one, in which `held` keeps that signal.

    A library ends its children so when its own process ends, and waits for them. A platform sends the same signal to
    every process of a job.
    """

    def listen() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
            pass
        os._exit(128 + signal.SIGTERM)

    threading.Thread(target=listen, name="SIGTERM of the parent", daemon=True).start()
