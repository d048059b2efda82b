"""Training over weights in 4 bits: bit for bit what training over the same numbers in the model's dtype gives."""

from __future__ import annotations

import megatron_patch.core.device  # noqa: F401

import json

import pytest
import torch

from megatron_patch.checkpoint.initial_weights import load_weights
from megatron_patch.config import Options
from megatron_patch.kernels.nf4 import dequantize_reference, quantize
from megatron_patch.llama.model_config import read_hf_config
from megatron_patch.weights.source import open_source
from tests.launching import GOLDEN, run_ranks
from tests.tiny import tiny_config
from tests.train.qlora_worker import built, compare, packed
from tests.weights.models import megatron_tensor


@pytest.mark.parametrize("changed", [dict(precision="fp32"), dict(recompute="full")], ids=["fp32", "bf16, AC full"])
def test_the_same_bits_as_over_dense_weights(alone, changed):
    compare(tiny_config(**changed), alone)


def test_the_same_bits_on_two_processes():
    run_ranks("tests.train.qlora_worker", json.dumps(dict(tensor_model_parallel_size=2, sequence_parallel=True)), count=2)


def test_a_checkpoint_s_weights_are_packed_as_they_are_read(alone):
    """q, k and v each as if alone: this model is too small for that, so as one."""
    model = read_hf_config(GOLDEN / "hf_gqa")
    state = built(tiny_config(model=model, precision="fp32", options=Options(lora_rank=4, qlora=True)), alone)
    load_weights(GOLDEN / "hf_gqa", state.model)
    source = open_source(GOLDEN / "hf_gqa")
    for layer in (0, model.num_layers - 1):
        for name in ("self_attention.linear_qkv", "self_attention.linear_proj", "mlp.linear_fc1", "mlp.linear_fc2"):
            wanted = megatron_tensor(source, f"decoder.layers.{name}.weight", layer).float()
            got = dequantize_reference(packed(state)[f"decoder.layers.{layer}.{name}.weight"].packed)
            assert torch.equal(got, dequantize_reference(quantize(wanted)))
            assert float((got - wanted).norm() / wanted.norm()) < 0.12
