"""Settings of config.json that no golden model varies reach the model: its logits are those of transformers."""

from __future__ import annotations

import megatron_patch.core.device  # noqa: F401, I001

import json
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM

from megatron_patch.checkpoint.initial_weights import load_weights
from megatron_patch.core import parallel
from megatron_patch.core.patches import apply_patches
from megatron_patch.llama.model_config import read_hf_config
from megatron_patch.model.build import build_model, choose_backend
from tests.launching import GOLDEN, convert
from tests.model.logits_worker import forward
from tests.tiny import be_alone, tiny_config


@pytest.fixture(scope="module")
def alone():
    be_alone()
    apply_patches()
    yield parallel.start(tiny_config())
    parallel.stop()


@pytest.mark.parametrize("setting, value", [("rms_norm_eps", 0.05), ("rope_theta", 50.0)])
def test_a_setting_changes_the_logits_as_in_transformers(alone, tmp_path, setting, value):
    folder = shutil.copytree(GOLDEN / "hf_gqa", tmp_path / "hf")
    content = json.loads((folder / "config.json").read_text())
    usual = content[setting]
    (folder / "config.json").write_text(json.dumps({**content, setting: value}))
    converted = convert(folder, tmp_path / "megatron")

    tokens = torch.randint(0, 800, (2, 48), generator=torch.Generator().manual_seed(1))
    options = dict(use_distributed_optimizer=False, precision="fp32", micro_batch_size=2, global_batch_size=2, seq_length=48)
    config = tiny_config(model=read_hf_config(converted), **options)
    model = build_model(config, alone, choose_backend(config, alone)[0])
    load_weights(str(converted), model)
    with torch.no_grad():
        theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(tokens).logits
        without = AutoModelForCausalLM.from_pretrained(GOLDEN / "hf_gqa", dtype=torch.float32)(tokens).logits
    assert (theirs - without).abs().max() > 0.01, f"{setting} {value} must matter beside {usual}, or agreement says little"
    torch.testing.assert_close(forward(model, config, tokens), theirs, atol=1e-4, rtol=0)
