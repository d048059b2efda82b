"""The command `megatron-patch` of a checkout that pip knows nothing of."""

from __future__ import annotations

import shutil
import subprocess
import sys

from tests.launching import ROOT, environment


def test_a_checkout_s_own_code_runs(tmp_path):
    """Another one may be installed, or none."""
    shutil.copytree(ROOT / "megatron_patch", tmp_path / "megatron_patch", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "megatron_patch/cli/inspection.py").write_text("print('the copy')")
    command = [sys.executable, "-m", "megatron_patch.cli.main", "inspect", "x"]
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert done.stdout == "the copy\n", done.stderr
