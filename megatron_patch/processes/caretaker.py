"""A thread beside torchrun that looks after the run: it keeps the folder's lock, ends with a script that waited, and
ends ranks in which nothing runs.

Imports no torch.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable

from megatron_patch.errors import UserError
from megatron_patch.language.sentences import fill, in_language
from megatron_patch.processes.console import tell
from megatron_patch.processes.parents import waiting_parent

_EVERY = 0.25  # seconds between two looks
RANKS_EVERY = 1.0  # seconds between two looks at the ranks


class Caretaker:
    """It looks four times a second, in a thread of its own; the training processes have none of it.

    Args:
        beat: is called every `beat_seconds`. UserError from it ends the run at once, without a save: the folder is no
            more this run's. OSError is told once, since a disk that fails may come back.
        look: is called every RANKS_EVERY seconds.
    """

    def __init__(self, beat: Callable[[], None] | None, beat_seconds: float, look: Callable[[], None]) -> None:
        self._look, self._beat, self._looks_a_beat = look, beat, max(1, round(beat_seconds / _EVERY))
        self._parent = waiting_parent()
        self._told = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="caretaker", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End, and wait until a heartbeat that is being written is there."""
        self._stop.set()
        self._thread.join()

    def _work(self) -> None:
        looks = 0
        while not self._stop.wait(_EVERY):
            looks += 1
            if self._parent is not None and os.getppid() != self._parent:
                self._parent = None
                os.kill(os.getpid(), signal.SIGTERM)  # as if the script had handed its own end on
            if self._beat is not None and looks % self._looks_a_beat == 0:
                self._write(self._beat)
            if looks % round(RANKS_EVERY / _EVERY) == 0:
                self._look()

    def _write(self, beat: Callable[[], None]) -> None:
        try:
            beat()
            self._told = False
        except UserError as error:
            tell(in_language(str(error)))
            os._exit(1)  # the kernel ends the ranks with this process: nothing of theirs may come into the folder
        except OSError as error:
            if not self._told:
                template = "warning: the heartbeat of the checkpoint folder's lock cannot be written ({})."
                tell(fill(template, error))
            self._told = True
