"""A file server or a disk that refuses: every call for a path below a folder, as the operating system's calls would."""

from __future__ import annotations

import builtins
import errno
import io
import os
from collections.abc import Callable
from pathlib import Path

_CALLS = ("stat", "lstat", "open", "scandir", "listdir", "mkdir", "rmdir", "unlink", "replace", "rename")


class Refusals:
    """What is refused at the moment.

    Attributes:
        number: of the error, while `below` is refused; 0 lets everything through.
        below: the folder, or the file.
        calls: that were for something below it.
        turn: which of them alone is refused, from 1; 0 for all.
    """

    def __init__(self, monkeypatch) -> None:
        self.number, self.below, self.calls, self.turn = 0, Path("/nowhere"), 0, 0
        for module, name in (*((os, name) for name in _CALLS), (io, "open"), (builtins, "open")):
            monkeypatch.setattr(module, name, self._refusing(getattr(module, name)))
        for name in ("pread", "preadv", "fsync"):
            monkeypatch.setattr(os, name, self._refusing_descriptor(getattr(os, name)))

    def begin(self, number: int, below: Path, turn: int = 0) -> None:
        """Refuse everything below a folder, or a file, from now on."""
        self.number, self.below, self.calls, self.turn = number, below, 0, turn

    def end(self) -> None:
        """Let everything through."""
        self.number = 0

    def _check(self, path: object) -> None:
        if not self.number or isinstance(path, int):
            return
        text = os.fsdecode(path)
        if text == str(self.below) or text.startswith(f"{self.below}/"):
            self.calls += 1
            if self.turn in (0, self.calls):
                raise OSError(self.number, os.strerror(self.number), text)

    def _refusing(self, call: Callable) -> Callable:
        def refuse(path=".", *arguments, **named):
            self._check(path)
            return call(path, *arguments, **named)

        return refuse

    def _refusing_descriptor(self, call: Callable) -> Callable:
        def refuse(descriptor, *arguments):
            if self.number:
                try:
                    self._check(os.readlink(f"/proc/self/fd/{descriptor}"))
                except OSError as error:
                    raise OSError(error.errno, os.strerror(error.errno)) from None  # of a descriptor it names no file
            return call(descriptor, *arguments)

        return refuse


OUTSIDE = (errno.EACCES, errno.ESTALE, errno.ETIMEDOUT, errno.EMFILE)  # these tell nothing about a file itself
