"""What ranks leave for their torchrun: no note that cannot be written ends a run, and none is taken for another's."""

from __future__ import annotations

import errno
import os
import tempfile

import pytest

from megatron_patch.errors import UserError
from megatron_patch.processes import notes


@pytest.fixture
def folder():
    with notes.folder():
        yield


def test_after_a_restart_nothing_is_left_of_the_start_before(folder):
    note = notes.IterationNote()
    assert notes.iterations_done() == 0
    note.done(100)
    notes.write_verdict("rank 1 stands still.")
    notes.write_end(is_final=False)
    assert (notes.iterations_done(), notes.verdict(), notes.is_final()) == (100, "rank 1 stands still.", False)
    notes.forget()
    assert (notes.iterations_done(), notes.verdict(), notes.is_final()) == (0, "", None)
    note.done(101)  # of a process that is ending
    assert notes.iterations_done() == 0
    notes.IterationNote().done(101)
    assert notes.iterations_done() == 101


def test_of_ranks_that_differ_one_that_cannot_go_on_decides(folder):
    notes.write_end(is_final=True)
    notes.write_end(is_final=False)
    assert notes.is_final() is True


def test_a_full_disk_takes_no_notes_and_ends_no_run(folder, monkeypatch, capsys):
    """What is known no more is not taken for the newest."""
    note = notes.IterationNote()
    note.done(1)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    note.done(2)
    note.done(3)
    assert notes.iterations_done() is None
    monkeypatch.setattr(notes.Path, "write_text", full)
    notes.write_verdict("rank 1 stands still.")
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1, "torchrun looks every second"
    assert "what ranks note for torchrun is not known or not complete (No space left" in said[0]


@pytest.fixture
def no_temporary_folder(monkeypatch, tmp_path):
    """As in a container whose folders are all read-only: Python tries these."""
    for name in ("TMPDIR", "TEMP", "TMP"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: [os.environ["TMPDIR"]])


def test_without_a_folder_the_run_goes_on_and_what_it_misses_is_said(no_temporary_folder, capsys):
    with notes.folder():
        assert notes.iterations_done() is None and notes.is_final() is None and notes.verdict() == ""
        notes.IterationNote().done(7)
        notes.write_end(is_final=True)
    assert capsys.readouterr().err.startswith("warning: ranks cannot leave notes for torchrun (")


def test_memory_takes_temporary_files_where_no_disk_does(no_temporary_folder, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(notes, "_MEMORY", str(tmp_path / "nor here"))
    with pytest.raises(UserError, match="no folder for temporary files can be written: TMPDIR, /tmp"):
        notes.find_temporary_folder()
    monkeypatch.setattr(notes, "_MEMORY", str(tmp_path))
    notes.find_temporary_folder()
    assert tempfile.gettempdir() == os.environ["TMPDIR"] == str(tmp_path), "the ranks take it too"
    assert f"can be written; {tmp_path} is used, which is memory." in capsys.readouterr().err
