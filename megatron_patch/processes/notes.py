"""What ranks leave for their torchrun, in a folder of this machine: how far they came, and why they ended.

Imports no torch.
"""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

_FOLDER = "MEGATRON_PATCH_NOTES"
_ITERATION, _VERDICT, _SIGNAL = "iteration", "verdict", "signal"


@contextlib.contextmanager
def folder() -> Iterator[None]:
    """The folder, named in the environment of the ranks that are started inside."""
    with tempfile.TemporaryDirectory(prefix="megatron_patch_") as path:
        os.environ[_FOLDER] = path
        yield


def write_verdict(sentence: str) -> None:
    """Why this rank ends the run, before its own end. The last one counts."""
    if path := _path(_VERDICT):
        path.write_text(sentence, encoding="utf-8")


def forget_verdict() -> None:
    """The run is started again."""
    if path := _path(_VERDICT):
        path.unlink(missing_ok=True)


def verdict() -> str:
    """Why a rank has ended the run; empty if none has said it."""
    return _read(_VERDICT)


def write_signal(name: str) -> None:
    """By which signal the run was stopped, before its last iteration and on whichever node."""
    if path := _path(_SIGNAL):
        path.write_text(name, encoding="utf-8")


def stopping_signal() -> signal.Signals | None:
    """The signal that stopped the run; None if none has."""
    name = _read(_SIGNAL)
    return signal.Signals[name] if name else None


class IterationNote:
    """Where a rank writes which iteration it has done; nowhere if no torchrun of this project has started it."""

    def __init__(self) -> None:
        path = _path(_ITERATION)
        self._file = None if path is None else os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)

    def done(self, iteration: int) -> None:
        """That iteration is done."""
        if self._file is not None:
            os.pwrite(self._file, b"%020d" % iteration, 0)


def iterations_done() -> int:
    """The last iteration that a rank of this machine has done; 0 before the first."""
    return int(_read(_ITERATION) or 0)


def _path(name: str) -> Path | None:
    found = os.environ.get(_FOLDER)
    return Path(found) / name if found else None


def _read(name: str) -> str:
    path = _path(name)
    return path.read_text(encoding="utf-8") if path is not None and path.is_file() else ""
