"""The thread beside torchrun does its work whatever the console takes."""

from __future__ import annotations

import os
import sys

import pytest

from megatron_patch.errors import UserError
from megatron_patch.processes.caretaker import Caretaker


class Full:
    """Standard error as a file on a full disk."""

    def write(self, _):
        raise OSError("No space left on device")

    flush = write


def test_a_full_console_keeps_no_run_in_a_folder_that_another_holds(monkeypatch):
    def beat():
        if (error := beats.pop(0)) is not None:
            raise error

    beats = [OSError("Input/output error"), None, UserError("held by another run")]
    one = Caretaker(beat, 5.0, lambda: None)
    monkeypatch.setattr(sys, "stderr", Full())
    monkeypatch.setattr(os, "_exit", sys.exit)
    one._write(beat)
    one._write(beat)
    with pytest.raises(SystemExit):
        one._write(beat)
