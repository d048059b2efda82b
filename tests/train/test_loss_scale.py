"""fp16's loss scale and what a skipped step leaves behind, in this process."""

from __future__ import annotations

import pytest
import torch

from megatron_patch.config import Options
from megatron_patch.train.log import RunLog
from megatron_patch.train.setup import build_state
from megatron_patch.train.step import train_step
from tests.tiny import tiny_batches, tiny_config


def fp16_state(alone, zero, scale, window=1000):
    options = Options(initial_loss_scale=scale, loss_scale_window=window)
    config = tiny_config(precision="fp16", use_distributed_optimizer=zero, options=options)
    torch.manual_seed(0)
    return build_state(config, alone, RunLog(config, active=False), 100)


def weights(state):
    return [parameter.detach().clone() for parameter in state.model.parameters()]


@pytest.mark.parametrize("zero", [True, False], ids=["DO true", "DO false"])
def test_a_skipped_step_is_as_if_it_had_not_been(alone, zero):
    """After overflows the first real update is that of a run that began with the scale they led to."""
    late = fp16_state(alone, zero, scale=2.0**60)
    before = weights(late)
    overflows = 0
    while overflows < 60 and train_step(late, tiny_batches(1, 2)).found_inf:
        overflows += 1
        assert all(map(torch.equal, weights(late), before)), "an overflow changes no weight"
    assert 2 < overflows < 60, "the scale has come down"
    early = fp16_state(alone, zero, scale=late.loss_scale.item())
    assert all(map(torch.equal, weights(early), before))
    assert not train_step(early, tiny_batches(1, 2)).found_inf
    assert all(map(torch.equal, weights(early), weights(late))), "Adam's bias correction counts updates, not overflows"


def test_the_scale_halves_after_overflows_and_doubles_after_good_steps(alone):
    """Megatron's dynamic scale, which forgives one overflow (hysteresis 2), written out by hand."""
    window = 3
    state = fp16_state(alone, True, scale=2.0**40, window=window)
    scale, forgiven, good = 2.0**40, 2, 0
    for seed in range(40):
        result = train_step(state, tiny_batches(seed, 2))
        assert result.loss_scale == scale, f"step {seed}"
        if result.found_inf:
            forgiven, good = forgiven - 1, 0
            if forgiven <= 0:
                scale = max(scale / 2, 1.0)
        else:
            good += 1
            if good == window:
                scale, forgiven, good = scale * 2, 2, 0
    assert scale < 2.0**40 and good != seed, "both directions were taken"
