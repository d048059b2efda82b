"""Logits after conversion equal those of transformers, at every small layout."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM

from megatron_patch.arguments.processes import free_port
from tests.launching import GOLDEN, ROOT, convert


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("megatron")
    return {name: convert(GOLDEN / name, folder / name) for name in ("hf_mha", "hf_gqa")}


# The layout does not change how attention is computed, so each implementation is tried at one layout.
LAYOUTS = [(1, 1, "fused"), (1, 1, "unfused"), (2, 1, "fused"), (1, 2, "fused"), (2, 2, "fused")]


@pytest.mark.parametrize("tp, pp, attention", LAYOUTS)
@pytest.mark.parametrize("name", ["hf_mha", "hf_gqa"])
def test_logits_equal_hugging_face(name, tp, pp, attention, checkpoints, tmp_path):
    tokens = torch.randint(0, 800, (2, 48), generator=torch.Generator().manual_seed(1))
    torch.save(tokens, tmp_path / "tokens.pt")
    command = [
        sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={tp * pp}", f"--master-port={free_port()}",
        "-m", "tests.model.logits_worker", checkpoints[name], tmp_path / "tokens.pt", tmp_path / "logits.pt", tp, pp, attention,
    ]  # fmt: skip
    result = subprocess.run(
        list(map(str, command)), cwd=ROOT, env={**os.environ, "PYTHONWARNINGS": "ignore"}, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr[-4000:]
    model = AutoModelForCausalLM.from_pretrained(GOLDEN / name, dtype=torch.float32)
    with torch.no_grad():
        wanted = model(tokens).logits
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt", weights_only=True), wanted, atol=1e-4, rtol=0)
