"""Each row of the patch table is needed, may be applied twice, and is an error if its target is gone."""

from __future__ import annotations

import megatron_patch.core.device  # noqa: F401

import importlib
import json
import subprocess
import sys
from dataclasses import replace

import megatron.core
import pytest

from megatron_patch.core import patches
from megatron_patch.errors import UserError
from tests.launching import ROOT

ROWS = tuple(filter(patches.has_target, patches.PATCHES + patches.ADDITIONS))


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory) -> dict[str, str]:
    """The error of reading data, training and resuming, with all rows and without each; empty if there was none."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.core.patched_training", str(tmp_path_factory.mktemp("runs"))]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(result.stdout.splitlines()[-1])


def test_with_every_row_training_resumes(outcomes):
    """It runs before and after the runs without a row, which must put core back as it was."""
    assert outcomes["all"] == outcomes["all again"] == ""


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.module}.{row.attribute}")
def test_without_any_one_row_reading_data_training_or_resuming_fails(row, outcomes):
    """Where core does without a row, as it says, nothing fails."""
    here, until = ([int(part) for part in text.split(".")[:2]] for text in (megatron.core.__version__, row.until or "99.0"))
    assert bool(outcomes[f"{row.module}.{row.attribute}"]) is (here < until)


def test_a_row_for_later_cores_is_left_out(monkeypatch):
    """Of two versions, one before the row's and one after it, whatever core is here."""
    row = replace(patches.PATCHES[0], since="0.19")
    for version, is_there in (("0.16.1", False), ("0.18.2", False), ("0.19.0rc1", True), ("0.19.2", True), ("1.0", True)):
        monkeypatch.setattr(patches.megatron.core, "__version__", version)
        assert patches.has_target(row) is is_there and patches.has_target(patches.PATCHES[0])


def test_a_row_whose_target_is_gone_is_an_error(monkeypatch):
    gone = replace(patches.PATCHES[0], attribute="NoSuchName")
    monkeypatch.setattr(patches, "PATCHES", (gone,))
    with pytest.raises(RuntimeError, match="has no NoSuchName, which megatron_patch replaces"):
        patches.apply_patches()


@pytest.mark.parametrize("version", ["0.15.3", "0.99.0rc1"])
def test_a_core_that_was_not_tried_is_what_a_user_can_mend(version, monkeypatch):
    monkeypatch.setattr(patches.megatron.core, "__version__", version)
    monkeypatch.setattr(patches, "PATCHES", None)  # nothing may be replaced before
    with pytest.raises(UserError, match=f"megatron-core {version} is used, and this project was tried with .*: run pip install"):
        patches.apply_patches()


@pytest.mark.parametrize("times", [1, 2])
def test_core_has_every_replacement_however_often_it_is_applied(monkeypatch, times):
    """Each model of a process applies the table, whatever core's names are before."""
    rows = [(importlib.import_module(row.module), row) for row in ROWS]
    for module, row in rows:
        monkeypatch.setattr(module, row.attribute, "core's own", raising=False)
    for _ in range(times):
        patches.apply_patches()
    for module, row in rows:
        assert getattr(module, row.attribute) is row.replacement, row
