"""A console that may go away: a pipe whose reader has ended, a terminal that was closed, a full disk behind it.

A run outlives each of them. Ctrl-C ends the `tee` behind a run before the run has saved, and a lost connection takes
the terminal. What the run says then is lost for the console. Its log file has it. Imports no torch.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
from typing import TextIO

_GONE = (errno.EPIPE, errno.EIO, errno.ENXIO, errno.EBADF)  # nobody will ever read there


class LastingStream(io.TextIOWrapper):
    """Text for a descriptor. What the operating system refuses of it is lost, and raises nothing.

    Behind a pipe or terminal that is gone, the descriptor becomes /dev/null: libraries that write to it by themselves
    must not fail either.
    """

    def write(self, text: str) -> int:
        """Write, or lose, `text`."""
        try:
            return super().write(text)
        except OSError as error:
            self._let_go(error)
            return len(text)

    def flush(self) -> None:
        """Flush what can be."""
        try:
            super().flush()
        except OSError as error:
            self._let_go(error)

    def _let_go(self, error: OSError) -> None:
        """Say no more there, if nobody can read it; a disk may have room again later."""
        if error.errno in _GONE:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)


def outlive_the_console() -> None:
    """Let no line that this process prints end it, from here on. Its own error has status and sentence all the same."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper) and not isinstance(stream, LastingStream):
            stream.flush()
            try:
                there = stream.fileno()
            except io.UnsupportedOperation:  # it is in memory, and outlives the process
                continue
            raw = open(there, "wb", closefd=False)  # noqa: SIM115  it lives as long as the process
            buffered = stream.line_buffering, stream.write_through
            lasting = LastingStream(raw, stream.encoding, stream.errors, None, *buffered)
            setattr(sys, name, lasting)


def tell(text: str, stream: TextIO | None = None) -> None:
    """Write a line onto `stream`, standard error by default, if that takes one. For what ends or watches a run."""
    with contextlib.suppress(OSError):
        print(text, file=stream or sys.stderr, flush=True)
