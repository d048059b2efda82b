"""The system is asked to read the beginnings of files ahead, in their order and within bounds, until a block ends."""

from __future__ import annotations

import os
import threading

import pytest

from megatron_patch.formats import read_ahead as module
from megatron_patch.formats.read_ahead import read_ahead


@pytest.fixture
def asked(monkeypatch):
    """(name, first byte) of every wish."""
    found = []
    monkeypatch.setattr(
        os, "posix_fadvise", lambda descriptor, first, *_: found.append((os.readlink(f"/proc/self/fd/{descriptor}"), first))
    )
    return found


def test_the_beginnings_of_files_as_far_as_is_allowed(tmp_path, asked, monkeypatch):
    step = module._STEP
    monkeypatch.setattr(module, "_MOST", 5 * step)
    files = [tmp_path / name for name in ("a", "missing", "b", "c")]
    for path, steps in zip(files, (2, 0, 4, 1)):
        if steps:
            path.write_bytes(b"x" * (steps * step - 1))
    module._ask(files, threading.Event())
    a, _, b, _ = map(str, files)
    assert asked == [(a, 0), (a, step), (b, 0), (b, step), (b, 2 * step)]


def test_nothing_is_asked_for_once_the_block_has_ended(tmp_path, asked):
    path = tmp_path / "a"
    path.write_bytes(b"x" * 100)
    ended = threading.Event()
    ended.set()
    module._ask([path], ended)
    with read_ahead([path]):
        pass
    assert len(asked) <= 1 and not any(thread.name == "read-ahead" for thread in threading.enumerate())
