"""adapter_config.json and adapter_model.safetensors: what PEFT writes is read, what means something else is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_patch.errors import UserError
from megatron_patch.formats.peft_adapter import CONFIG, TENSORS, modules_of, read_config
from megatron_patch.formats.peft_tensors import read_adapter, write_adapter

NAME = "base_model.model.model.layers.0.self_attn.q_proj"
WHOLE = "base_model.model.lm_head"
CONTENT = {"peft_type": "LORA", "r": 2, "lora_alpha": 6, "lora_dropout": 0.1, "bias": "none", "target_modules": ["q_proj"],
           "base_model_name_or_path": "/models/羊驼\u3000二", "rank_pattern": {}, "init_lora_weights": True}  # fmt: skip
MATRICES = {f"{NAME}.lora_A.weight": torch.randn(2, 6), f"{NAME}.lora_B.weight": torch.randn(4, 2)}


def folder_of(path: Path, tensors: dict[str, torch.Tensor] = MATRICES, **changed: object) -> Path:
    path.mkdir(exist_ok=True)
    (path / CONFIG).write_text(json.dumps(CONTENT | changed))
    save_file(tensors, path / TENSORS)
    return path


@pytest.mark.parametrize(
    "changed, said",
    [
        ({"peft_type": "LOHA"}, "only LORA"),
        ({"use_dora": True}, "use_dora"),
        ({"bias": "all"}, "bias"),
        ({"rank_pattern": {"q_proj": 4}}, "rank_pattern"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights"),
        ({"layer_replication": [[0, 1]]}, "layer_replication"),
        ({"a_key_of_a_later_peft": "on"}, "a_key_of_a_later_peft"),
        ({"r": True}, "whole number"),
        ({"lora_alpha": float("nan")}, "lora_alpha"),
        ({"target_modules": [1]}, "list of names"),
    ],
)
def test_what_means_another_computation_is_refused(tmp_path, changed, said):
    with pytest.raises(UserError, match=said):
        read_config(folder_of(tmp_path / "adapter", **changed))


@pytest.mark.parametrize(
    "tensors, said",
    [
        ({f"{NAME}.lora_A.weight": torch.zeros(2, 6)}, "lacks .*lora_B"),
        (MATRICES | {f"{NAME}.lora_B.weight": torch.zeros(4, 3)}, "has rank 3, and .* says 2"),
        (MATRICES | {f"{NAME}.lora_embedding_A": torch.zeros(2, 6)}, "no matrix"),
        (MATRICES | {"other.weight": torch.zeros(2, 6)}, "no matrix"),
        (MATRICES | {f"{NAME}.lora_A.weight": torch.zeros(2, 0)}, "no matrix"),
        ({f"{WHOLE}.weight": torch.zeros(2, 6)}, "no adapter"),
    ],
)
def test_tensors_that_are_no_lora_are_refused(tmp_path, tensors, said):
    with pytest.raises(UserError, match=said):
        read_adapter(folder_of(tmp_path / "adapter", tensors))


def test_what_is_read_is_written_again(tmp_path):
    grown = {f"{WHOLE}.modules_to_save.weight": torch.ones(3, 6), f"{WHOLE}.original_module.weight": torch.zeros(3, 6)}
    source = folder_of(tmp_path / "adapter", MATRICES | grown, modules_to_save=["lm_head"], use_rslora=True)
    adapter = read_adapter(source)
    assert adapter.config.scale == pytest.approx(6 / 2**0.5) and adapter.config.base == "/models/羊驼\u3000二"
    assert modules_of(source) == {(NAME.removeprefix("base_model.model."), part) for part in "AB"} | {("lm_head", "")}
    (tmp_path / "copy").mkdir()
    write_adapter(tmp_path / "copy", adapter)
    assert read_adapter(tmp_path / "copy").config == adapter.config
    wanted = MATRICES | {f"{WHOLE}.weight": torch.ones(3, 6)}
    torch.testing.assert_close(load_file(tmp_path / "copy" / TENSORS), wanted, rtol=0, atol=0)
