"""Each row of the patch table is needed, and says so when its target is gone."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from dataclasses import replace

import pytest

from megatron_patch.core import patches
from tests.launching import ROOT

WORKER = """
import sys
from megatron_patch.core import patches
missing = int(sys.argv[1])
rows = patches.PATCHES + patches.ADDITIONS
kept = [row for number, row in enumerate(rows) if number != missing]
patches.PATCHES = tuple(row for row in kept if row in patches.PATCHES)
patches.ADDITIONS = tuple(row for row in kept if row in patches.ADDITIONS)
from tests.core.patched_training import train_save_and_resume
train_save_and_resume(sys.argv[2])
"""


def run_without(row: int, folder) -> subprocess.CompletedProcess[str]:
    """Two steps, a save, a fresh start from it and two more, with one row of the table left out."""
    command = [sys.executable, "-W", "ignore", "-c", WORKER, str(row), str(folder)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


def test_with_every_row_training_resumes(tmp_path):
    result = run_without(-1, tmp_path)
    assert result.returncode == 0, result.stderr[-3000:]


@pytest.mark.parametrize("row", range(len(patches.PATCHES + patches.ADDITIONS)))
def test_without_any_one_row_training_or_resuming_fails(row, tmp_path):
    result = run_without(row, tmp_path)
    assert result.returncode != 0
    assert re.search(r"Error|Exception", result.stderr), result.stderr[-2000:]


def test_a_row_whose_target_is_gone_is_an_error(monkeypatch):
    gone = replace(patches.PATCHES[0], attribute="NoSuchName")
    monkeypatch.setattr(patches, "PATCHES", (gone,))
    with pytest.raises(RuntimeError, match="has no NoSuchName, which megatron_patch replaces"):
        patches.apply_patches()


def test_applying_twice_changes_nothing():
    patches.apply_patches()
    first = [getattr(importlib.import_module(row.module), row.attribute) for row in patches.PATCHES]
    patches.apply_patches()
    assert first == [getattr(importlib.import_module(row.module), row.attribute) for row in patches.PATCHES]
