"""Each row of the patch table is needed, may be applied twice, and is an error if its target is gone."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from dataclasses import replace

import pytest

from megatron_patch.core import patches
from tests.launching import ROOT


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory) -> dict[str, str]:
    """The error of training and resuming with all rows, and without each of them; empty if there was none."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.core.patched_training", str(tmp_path_factory.mktemp("runs"))]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(result.stdout.splitlines()[-1])


def test_with_every_row_training_resumes(outcomes):
    """It runs before and after the runs without a row, which must put core back as it was."""
    assert outcomes["all"] == outcomes["all again"] == ""


@pytest.mark.parametrize("row", patches.PATCHES + patches.ADDITIONS, ids=lambda row: f"{row.module}.{row.attribute}")
def test_without_any_one_row_training_or_resuming_fails(row, outcomes):
    assert outcomes[f"{row.module}.{row.attribute}"]


def test_a_row_whose_target_is_gone_is_an_error(monkeypatch):
    gone = replace(patches.PATCHES[0], attribute="NoSuchName")
    monkeypatch.setattr(patches, "PATCHES", (gone,))
    with pytest.raises(RuntimeError, match="has no NoSuchName, which megatron_patch replaces"):
        patches.apply_patches()


@pytest.mark.parametrize("times", [1, 2])
def test_core_has_every_replacement_however_often_it_is_applied(monkeypatch, times):
    """Each model of a process applies the table, whatever core's names are before."""
    rows = [(importlib.import_module(row.module), row) for row in patches.PATCHES + patches.ADDITIONS]
    for module, row in rows:
        monkeypatch.setattr(module, row.attribute, "core's own", raising=False)
    for _ in range(times):
        patches.apply_patches()
    for module, row in rows:
        assert getattr(module, row.attribute) is row.replacement, row
