"""NF4 against bitsandbytes' own file: `tests/golden/nf4.safetensors`, made by its CPU backend, version 0.50.2.

A weight [128, 256] in bf16, one block of it zero, and what `quantize_4bit` and `dequantize_4bit` made of it.
"""

from __future__ import annotations

from functools import cache

import pytest
import torch
from safetensors.torch import load_file

from megatron_patch.kernels.nf4 import CODE, GROUP, Packed, _scale_code, dequantize, quantize
from tests.launching import GOLDEN


@cache
def golden():
    return load_file(GOLDEN / "nf4.safetensors")


def packed(device) -> Packed:
    """What bitsandbytes stored."""
    stored = {name: tensor.to(device) for name, tensor in golden().items()}
    groups = stored["nested_absmax"]
    return Packed(stored["codes"], stored["absmax"], groups, stored["offset"].expand(len(groups)).contiguous(), (128, 256))


def test_what_bitsandbytes_stored_is_read_bit_for_bit(device, implementation):
    wanted = golden()["dequantized_fp32"]  # its first 32 rows
    got = dequantize(packed(device), torch.empty(128, 256, device=device), implementation=implementation)
    assert torch.equal(got[:32].cpu(), wanted)
    out = torch.empty(128, 256, dtype=torch.bfloat16, device=device)
    dequantize(packed(device), out, implementation=implementation)
    if device.type == "cpu" and implementation == "triton":  # whose interpreter truncates to bfloat16
        assert float((out.float() - got).abs().max()) <= 2**-7 * float(got.abs().max())
    else:
        assert torch.equal(out.cpu(), golden()["dequantized"])


def test_a_weight_is_stored_as_bitsandbytes_stores_it(device):
    """Its CPU backend divides where its GPU kernels multiply by the inverse: a scale in a thousand differs by one."""
    mine, theirs = quantize(golden()["weight"].to(device)), packed(device)
    assert torch.equal(mine.codes, theirs.codes)
    assert torch.equal(mine.groups, theirs.groups) and torch.equal(mine.offsets, theirs.offsets)
    apart = (mine.scales.int() - theirs.scales.int()).abs()
    assert int(apart.max()) <= 1 and float((apart > 0).float().mean()) < 0.01
    assert torch.equal(_scale_code(device).cpu(), golden()["nested_quant_map"])
    assert torch.equal(torch.tensor(CODE), golden()["quant_map"])


def test_fused_tensors_are_quantized_as_if_alone(device):
    """q, k and v of two KV heads; each has its own mean magnitude. Where groups would not fit, all have one."""
    weight = torch.randn(2 * 512, 256, device=device, dtype=torch.float16) * torch.rand(1024, 1, device=device).half()
    got = dequantize(quantize(weight, (256, 128, 128)), torch.empty_like(weight))
    for part, own in zip(weight.view(2, 512, 256).split((256, 128, 128), 1), got.view(2, 512, 256).split((256, 128, 128), 1)):
        alone = part.reshape(-1, 256)
        assert torch.equal(own.reshape(-1, 256), dequantize(quantize(alone), torch.empty_like(alone)))
    assert len(quantize(weight[:, :64], (256, 128, 128)).offsets.unique()) == 1


@pytest.mark.parametrize("shape", [(1, 64), (3, 192), (130, 4160)])
def test_any_number_of_blocks(device, implementation, shape):
    """Within half the widest gap of the code, and what 8 bits for a scale add; the last group may be short."""
    weight = torch.randn(shape, device=device)
    stored = quantize(weight)
    assert len(stored.groups) == -(-len(stored.scales) // GROUP)
    got = dequantize(stored, torch.empty_like(weight), implementation=implementation)
    most = weight.view(-1, 64).abs().amax(1, keepdim=True)
    assert bool(((got - weight).view(-1, 64).abs() <= 0.153 * most + 0.02 * most.max()).all())


def test_shapes_are_checked(device):
    with pytest.raises(ValueError, match="multiple of 64"):
        quantize(torch.zeros(3, 30, device=device))
    with pytest.raises(ValueError, match="without gaps"):
        dequantize(packed(device), torch.empty(256, 128, device=device))
