"""Parameters that are kept as bf16 copy and remainder are the same fp32 numbers as whole ones."""

from __future__ import annotations

import torch

from megatron_patch.core.adam import Adam


def stepped(split: bool) -> tuple[Adam, torch.Tensor, torch.Tensor]:
    """Three steps from the same bf16 numbers, with their fp32 parameter whole or split."""
    draw = torch.Generator().manual_seed(0)
    copy = torch.randn(300, generator=draw).bfloat16()
    parameter = copy.float()
    adam = Adam([parameter], lr=1e-2, weight_decay=0.1)
    adam.model_copies = {parameter: copy}
    if split:
        adam.split_parameters()
        assert parameter.untyped_storage().nbytes() == 4 and parameter.isnan().all()
    for _ in range(3):
        parameter.grad = torch.randn(300, generator=draw)
        adam.step()
    return adam, parameter, copy


def test_steps_and_loading_lose_no_bit():
    _, whole, _ = stepped(split=False)
    adam, parameter, copy = stepped(split=True)
    assert torch.equal(adam.value_in_gradient(parameter), whole) and torch.equal(copy, whole.bfloat16())
    assert not torch.equal(copy.float(), whole)
    loaded = torch.linspace(-2, 3, 300)
    parameter.grad.copy_(loaded)  # where a checkpoint's numbers arrive
    adam.values_were_set()
    parameter.grad = torch.zeros(300)
    assert torch.equal(adam.value_in_gradient(parameter), loaded) and torch.equal(copy, loaded.bfloat16())


def test_weights_that_others_wrote_are_the_parameters():
    adam, parameter, copy = stepped(split=True)
    copy.fill_(0.5)
    adam.copies_were_set()
    assert torch.equal(adam.value_in_gradient(parameter), torch.full((300,), 0.5))
