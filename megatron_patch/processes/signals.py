"""What SIGTERM and SIGINT do before and after a process has something to save. Imports no torch."""

from __future__ import annotations

import contextlib
import signal
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
