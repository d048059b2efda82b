"""The rank's side of the process that writes (`writing_process.py`): how it is started, asked and heard."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from multiprocessing import Pipe
from pathlib import Path

from megatron_patch.checkpoint.finish import Ending
from megatron_patch.checkpoint.writing_process import Answer, Job, Tidying
from megatron_patch.processes.signals import held

_PACKAGE = Path(__file__).resolve().parents[2]


class Writer:
    """A process that does one thing after the other.

    It is a new program instead of a fork, since a fork of a process that uses CUDA is not safe. Signals are kept from
    it from its birth. Start it in the main thread: the kernel ends it with the thread that has started it.

    Args:
        memory: the descriptor of the memory that it reads.
        size: bytes of that memory.
    """

    def __init__(self, memory: int, size: int) -> None:
        self._connection, other = Pipe()
        words = [
            sys.executable,
            "-m",
            "megatron_patch.checkpoint.writing_process",
            *map(str, (os.getpid(), memory, other.fileno(), size)),
        ]
        path = os.pathsep.join(filter(None, (str(_PACKAGE), os.environ.get("PYTHONPATH"))))
        with held():
            self._process = subprocess.Popen(
                words, env={**os.environ, "PYTHONPATH": path}, pass_fds=(memory, other.fileno()), stdin=subprocess.DEVNULL
            )
        other.close()
        self._asked = 0  # requests without an answer yet

    @property
    def has_ended(self) -> bool:
        """Whether the process is no more."""
        return self._process.poll() is not None

    def ask(self, request: Job | Ending | Tidying | Path) -> None:
        """Let it write files, make a checkpoint of a folder, look after the others, or remove what is left over."""
        self._asked += 1
        with contextlib.suppress(OSError):  # it has ended, which `answer` says
            self._connection.send(request)

    def answer(self) -> Answer | None:
        """The answer to the oldest request; None while it is being worked on."""
        try:
            if not self._connection.poll():
                return None
            found = self._connection.recv()
        except (EOFError, OSError):
            self._asked = 0
            status = self._process.wait()
            return Answer(f"the process that writes checkpoints has ended with status {status}", {}, [])
        self._asked -= 1
        return found

    def wait(self) -> None:
        """Wait until nothing is asked of it any more, and drop the answers."""
        while self._asked:
            self._connection.poll(None)
            self.answer()

    def close(self) -> None:
        """Let it end, which it does when it has done what was asked."""
        self._connection.close()
        self._process.wait()
