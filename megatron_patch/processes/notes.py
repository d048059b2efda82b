"""What ranks leave for their torchrun, in a folder of this machine: how far they came, that they live, why they ended.

Notes help; no run ends because one cannot be written, and where one is missing torchrun decides without it. Imports no
torch.
"""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

from megatron_patch.errors import UserError, refusal
from megatron_patch.language.sentences import fill
from megatron_patch.processes.console import tell

_FOLDER = "MEGATRON_PATCH_NOTES"
_ITERATION, _VERDICT, _FINAL, _PASSING, _SIGNAL = "iteration", "verdict", "final", "passing", "signal"
_told: set[str] = set()  # refusals; torchrun reads notes every second
_MEMORY = "/dev/shm"  # containers have it, also those whose other folders are read-only


def find_temporary_folder() -> None:
    """See that there is a folder for temporary files: torch's agent needs one, and so does a rank that loads data.

    Raises:
        UserError: there is none.
    """
    with contextlib.suppress(FileNotFoundError):
        tempfile.gettempdir()
        return
    os.environ["TMPDIR"] = _MEMORY  # for the ranks too
    try:
        tempfile.gettempdir()
    except FileNotFoundError:
        raise UserError(
            "no folder for temporary files can be written: TMPDIR, /tmp, /var/tmp and /dev/shm were tried. Mount one of them "
            "writable, or set TMPDIR to a folder that is."
        ) from None
    tell(fill("warning: no folder for temporary files can be written; {} is used, which is memory.", _MEMORY))


@contextlib.contextmanager
def folder() -> Iterator[None]:
    """The folder, named in the environment of the ranks that are started inside; none where none can be made."""
    os.environ.pop(_FOLDER, None)
    _told.clear()
    try:
        # What cannot be removed in the end is small, and no reason to forget how the run has ended.
        made = tempfile.TemporaryDirectory(prefix="megatron_patch_", ignore_cleanup_errors=True)
    except OSError as error:
        template = (
            "warning: ranks cannot leave notes for torchrun ({}). So a failure that repeats itself is tried again up to "
            "MAX_RESTARTS times, a rank in which nothing runs any more is not ended, and the last line cannot say why a run was."
        )
        tell(fill(template, _words(error)))
        yield
        return
    with made as name:
        os.environ[_FOLDER] = name
        forget()
        yield


def forget() -> None:
    """The run is started, or started again: what was noted is of a start that has ended."""
    if (there := os.environ.get(_FOLDER)) is None:
        return
    try:
        for one in Path(there).iterdir():
            one.unlink()
    except OSError as error:
        _refused(error)
    _write(_ITERATION, "0")


def write_verdict(sentence: str) -> None:
    """Why this rank ends the run, before its own end. The last one counts."""
    _write(_VERDICT, sentence)


def verdict() -> str:
    """Why a rank has ended the run; empty if none has said it."""
    return read(_VERDICT) or ""


def write_end(*, is_final: bool) -> None:
    """Whether the failure with which this rank ends would be there again after a restart, where its status does not say
    so."""
    _write(_FINAL if is_final else _PASSING, "yes")


def is_final() -> bool | None:
    """Whether ranks have said that a restart is vain: True if one has; False if one hopes for it; else None."""
    return True if read(_FINAL) else False if read(_PASSING) else None


class Note:
    """A short text that a rank writes again and again, in place: once it is there it takes no more room.

    It is nowhere if no torchrun of this project has started the rank. After a refusal it is nowhere either, so that
    torchrun takes no old one for the newest.
    """

    def __init__(self, name: str, size: int) -> None:
        self._path, self._size, self._file = path(name), size, -1

    def write(self, text: str) -> None:
        """Write it."""
        if self._path is None:
            return
        try:
            if self._file < 0:
                self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT, 0o600)
            os.pwrite(self._file, text.encode().ljust(self._size), 0)
        except OSError as error:
            _refused(error)
            self.remove()

    def remove(self) -> None:
        """Leave none."""
        there, self._path = self._path, None
        if there is not None:
            with contextlib.suppress(OSError):  # of a disk that has become read-only: torchrun looks whether it is
                there.unlink(missing_ok=True)


def write_signal(name: str) -> None:
    """By which signal the run was stopped, before its last iteration and on whichever node."""
    _write(_SIGNAL, name)


def stopping_signal() -> signal.Signals | None:
    """The signal that stopped the run; None if none has."""
    name = read(_SIGNAL)
    return signal.Signals[name] if name else None


class IterationNote:
    """Where a rank writes which iteration it has done."""

    def __init__(self) -> None:
        self._note = Note(_ITERATION, 20)

    def done(self, iteration: int) -> None:
        """That iteration is done."""
        self._note.write(f"{iteration:020d}")


def iterations_done() -> int | None:
    """The last iteration that a rank of this machine has done since the last start; 0 before the first; None if that is
    not known."""
    text = read(_ITERATION)
    return int(text) if text and text.strip().isdecimal() else None


def path(name: str) -> Path | None:
    """Where a note of that name lies, or will; None where there is no folder."""
    found = os.environ.get(_FOLDER)
    return Path(found) / name if found else None


def _write(name: str, text: str) -> None:
    if (there := path(name)) is not None:
        try:
            there.write_text(text, encoding="utf-8")
        except OSError as error:
            _refused(error)


def read(name: str) -> str | None:
    """A note; None where there is none."""
    if (there := path(name)) is None:
        return None
    try:
        return there.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except OSError as error:
        _refused(error)
        return None


def _refused(error: OSError) -> None:
    """Say what the operating system has refused, once."""
    if (words := _words(error)) not in _told:
        _told.add(words)
        tell(fill("warning: what ranks note for torchrun is not known or not complete ({}).", words))


def _words(error: OSError) -> str:
    return refusal(error).rstrip(".")
