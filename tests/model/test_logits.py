"""Logits after conversion equal those of transformers, at every small layout."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.launching import GOLDEN, convert, run_ranks


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
    files = (checkpoints[name], tmp_path / "tokens.pt", tmp_path / "logits.pt")
    run_ranks("tests.model.logits_worker", *files, tp, pp, attention, count=tp * pp)
    model = AutoModelForCausalLM.from_pretrained(GOLDEN / name, dtype=torch.float32)
    with torch.no_grad():
        wanted = model(tokens).logits
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt", weights_only=True), wanted, atol=1e-4, rtol=0)
