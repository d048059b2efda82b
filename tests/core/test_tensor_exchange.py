"""Tensor-parallel ranks gather parts and sum results, through collectives and through each other's memory."""

import subprocess
import sys

import pytest

from megatron_patch.arguments.processes import free_port
from tests.launching import ROOT


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_each_rank_gets_what_it_must(ranks):
    options = [f"--nproc-per-node={ranks}", f"--master-port={free_port()}", "-m", "tests.core.exchange_worker"]
    command = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", *options]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
