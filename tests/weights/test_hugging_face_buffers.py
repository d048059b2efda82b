"""Tensors beside the weights: what changes nothing is left out, what could is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from megatron_patch.weights.source import open_source
from tests.weights.models import SMALL, random_weights, write_hf

# transformers' own formula: 1 / theta^(2i / D); SMALL has head size 4 and rope_theta 1e6
FREQUENCIES = torch.tensor([1.0, 1e-3])
MODEL = replace(SMALL, kv_channels=16, num_query_groups=4)


def opened(tmp_path, extra, kind="safetensors", config=SMALL):
    weights = random_weights(config)
    folder = write_hf(tmp_path / "hf", config, weights)
    if kind == "bin":
        (folder / "model.safetensors").unlink()
        torch.save(weights | extra, folder / "pytorch_model.bin")
    else:
        save_file(weights | extra, folder / "model.safetensors")
    return open_source(folder)


LAYER = "model.layers.1.self_attn."
HARMLESS = {
    LAYER + "rotary_emb.inv_freq": FREQUENCIES,
    LAYER + "rotary_emb.cos_cached": torch.zeros(1, 1, 16, 4).half(),
    LAYER + "rotary_emb.sin_cached": torch.zeros(16, 4),
    "model.rotary_emb.inv_freq": FREQUENCIES.bfloat16(),
    "model.layers.0.self_attn.rotary_emb.inv_freq": FREQUENCIES.double(),
    "model.rotary_emb.original_inv_freq": FREQUENCIES,
    "model.rotary_emb.cos_cached": torch.zeros(16, 4),
    LAYER + "bias": torch.ones(1, 1, 16, 16, dtype=torch.bool).tril(),
    LAYER + "masked_bias": torch.tensor(-1e9),
    "model.causal_mask": torch.ones(16, 16, dtype=torch.bool),
}


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
@pytest.mark.parametrize("name", HARMLESS)
def test_buffers_are_left_out(tmp_path, name, kind):
    assert opened(tmp_path, {name: HARMLESS[name]}, kind).notes == ()


@pytest.mark.parametrize(
    "name, tensor",
    [
        (LAYER + "q_proj.bias", torch.ones(16)),
        (LAYER + "bias", torch.zeros(16)),  # one axis: no mask, and no bias that a LLaMA has
        (LAYER + "rotary_emb.weight", torch.zeros(2)),
        ("model.layers.7.self_attn.q_proj.weight", torch.zeros(16, 16)),
    ],
)
def test_what_could_be_learnt_is_refused(tmp_path, name, tensor):
    with pytest.raises(ValueError, match="would be lost") as caught:
        opened(tmp_path, {name: tensor})
    assert name in str(caught.value)


def test_biases_of_zero_are_left_out_with_a_note(tmp_path):
    zeros = {LAYER + f"{x}_proj.bias": torch.zeros(rows) for x, rows in (("q", 16), ("k", 8), ("v", 8), ("o", 16))}
    (note,) = opened(tmp_path, zeros | {"model.norm.bias": torch.zeros(16)}).notes
    assert "zero everywhere" in note and LAYER + "q_proj.bias" in note


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["model.rotary_emb.inv_freq", LAYER + "rotary_emb.inv_freq"])
def test_frequencies_of_another_base_are_refused(tmp_path, name, dtype):
    """LLaMA's head size, in each dtype that such files have; rope_theta 1e6 is Code Llama's."""
    model = replace(MODEL, kv_channels=128)
    frequencies = 1e4 ** -(torch.arange(0, 128, 2).double() / 128)
    with pytest.raises(ValueError, match=r"rope_theta 1e\+04, and config.json says rope_theta 1e\+06"):
        opened(tmp_path, {name: frequencies.to(dtype)}, config=model)


def test_scaled_frequencies(tmp_path):
    """transformers from 4.43 on divides the frequencies of linear scaling, earlier ones the positions."""
    name, frequencies = "model.rotary_emb.inv_freq", 1e6 ** -(torch.arange(0, 16, 2).double() / 16).float()
    linear = replace(MODEL, rope_type="linear", rope_factor=4.0)
    for place, tensor in enumerate((frequencies, frequencies / 4)):
        assert opened(tmp_path / str(place), {name: tensor}, config=linear).notes == ()
    with pytest.raises(ValueError, match="with linear scaling by 4, and config.json"):
        opened(tmp_path / "plain", {name: frequencies / 4}, config=MODEL)


@pytest.mark.parametrize("values", [torch.zeros(2), torch.full((2,), float("nan")), torch.tensor([0.3, 7.0]), torch.ones(5)])
def test_frequencies_that_mean_nothing_are_noted(tmp_path, values):
    (note,) = opened(tmp_path, {"model.rotary_emb.inv_freq": values}).notes
    assert "config.json's rope_theta was taken" in note
