"""What the redirection for machines without CUDA must not change."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.launching import GOLDEN, ROOT

# In a process of its own, since the order of the first uses is what matters.
CODE = f"""
import sys
import torch
import megatron_patch.core.device
from megatron_patch.core.adam import Adam
weight = torch.nn.Parameter(torch.ones(3))
adam = Adam([weight])
weight.grad = torch.ones(3)
adam.step()
adam.zero_grad()
adam.load_state_dict(adam.state_dict())
# Each rank would import it, in two seconds, for an optimizer that is not compiled.
assert "torch._dynamo" not in sys.modules, "torch's compiler was imported"

with torch.device("meta"):
    assert torch.empty(2).is_meta and torch.arange(3).is_meta and torch.zeros(1).is_meta
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained({str(GOLDEN / "hf_gqa")!r}, dtype=torch.float32)
inverse = model.model.rotary_emb.inv_freq
wanted = 10000.0 ** -(torch.arange(0, 8, 2, dtype=torch.float64) / 8)
torch.testing.assert_close(inverse.double(), wanted, rtol=1e-6, atol=0)
"""


def test_no_compiler_is_imported_and_transformers_builds_models_as_ever():
    job = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run([sys.executable, "-W", "ignore", "-c", CODE], cwd=ROOT, env=job, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
