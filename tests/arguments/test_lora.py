"""The flags of LoRA beside an adapter that a run begins with."""

from __future__ import annotations

import pytest
import torch

from megatron_patch.arguments.findings import Findings
from megatron_patch.arguments.lora import with_lora
from megatron_patch.config import Options
from tests.formats.test_peft_adapter import folder_of

LAYER = "base_model.model.model.layers.0"


def matrices(*modules: str) -> dict[str, torch.Tensor]:
    found = {}
    for module in modules:
        found[f"{module}.lora_A.weight"], found[f"{module}.lora_B.weight"] = torch.zeros(7, 6), torch.zeros(6, 7)
    return found


ATTENTION = matrices(f"{LAYER}.self_attn.q_proj", f"{LAYER}.self_attn.v_proj")


def test_what_says_the_same_as_the_adapter_may_be_typed(tmp_path):
    folder = folder_of(tmp_path / "adapter", ATTENTION, r=7, lora_alpha=29, target_modules=["q_proj", "v_proj"])
    typed, findings = Options(lora_adapter=str(folder), lora_alpha=29.0, lora_targets="v_proj, q_proj"), Findings()
    options = with_lora(typed, findings, "bf16")
    assert findings.sentences == []
    assert (options.lora_rank, options.lora_alpha, options.lora_targets) == (7, 29.0, "q_proj,v_proj")


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        (ATTENTION | matrices("base_model.model.lm_head"), "has matrices for lm_head"),
        (ATTENTION | {f"{LAYER}.self_attn.o_proj.weight": torch.zeros(6, 6)}, "holds a whole model.layers.0.self_attn.o_proj"),
    ],
)
def test_an_adapter_over_other_modules_is_refused_under_its_own_flag(tensors, said, tmp_path):
    findings = Findings()
    with_lora(Options(lora_adapter=str(folder_of(tmp_path / "adapter", tensors, r=7))), findings, "bf16")
    (finding,) = findings.found
    assert finding.label == "--lora-adapter" and said in str(finding)
