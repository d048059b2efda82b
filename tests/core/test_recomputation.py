"""Recomputation gives the gradients of plain autograd, and reads no random state, which no CUDA graph could record."""

import megatron_patch.core.device  # noqa: F401

import pytest
import torch

from megatron_patch.core.recomputation import recomputed


def test_gradients_are_those_of_plain_autograd_and_no_random_state_is_read(monkeypatch):
    def forbidden(*_, **__):
        raise AssertionError("a random state was touched")

    for module in (torch, torch.cuda, torch.random):
        for name in ("get_rng_state", "set_rng_state"):
            monkeypatch.setattr(module, name, forbidden)
    weight, calls = torch.randn(4, 4, dtype=torch.float64, requires_grad=True), []

    def layer(x, residual, nothing):
        calls.append(torch.is_grad_enabled())
        return torch.tanh(x @ weight) + residual, nothing

    inputs = [torch.randn(3, 4, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    wanted = torch.autograd.grad(layer(*inputs, None)[0].pow(3).sum(), [*inputs, weight])
    calls.clear()
    out, nothing = recomputed(layer, *inputs, None)
    assert nothing is None and calls == [False], "the first time nothing is kept"
    out.pow(3).sum().backward()
    assert calls == [False, True]
    for got, truth in zip([*inputs, weight], wanted, strict=True):
        assert torch.equal(got.grad, truth)


def test_without_gradients_it_is_a_plain_call(recwarn):
    with torch.no_grad():
        assert recomputed(lambda x: x + 1, torch.ones(())) == pytest.approx(2.0)
    assert not recwarn, "torch warns where nothing wants a gradient"
