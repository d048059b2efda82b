"""Optimizer state goes from ZeRO-1 to a run without and back, whatever the precision."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from megatron_patch.checkpoint.training import Progress, module, resume, save_checkpoint
from megatron_patch.config import Options
from megatron_patch.train.log import RunLog
from megatron_patch.train.setup import build_state
from megatron_patch.train.step import train_step
from tests.tiny import tiny_batches, tiny_config


def steps(state, numbers):
    for number in numbers:
        train_step(state, tiny_batches(number, 2))
        state.scheduler.step(increment=1)


@pytest.mark.parametrize("zero", [True, False], ids=["from ZeRO-1", "to ZeRO-1"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_weights_are_those_of_the_run_that_did_not_change(alone, tmp_path, precision, zero):
    """Without clipping, since the two optimizers sum the gradients' norm in different orders."""
    config = tiny_config(output_path=str(tmp_path), precision=precision, use_distributed_optimizer=zero)
    config = replace(config, options=Options(clip_grad=0.0))
    other = replace(config, use_distributed_optimizer=not zero)
    whole = build_state(config, alone, RunLog(config, active=False), 4)
    steps(whole, (0, 1))
    saved = save_checkpoint(config, whole.model, whole.optimizer, whole.scheduler, Progress(2, 4, 0, 0))
    steps(whole, (2, 3))
    part = build_state(other, alone, RunLog(other, active=False), 4)
    resume(saved, part.model, part.optimizer, part.scheduler)
    steps(part, (2, 3))
    for (name, wanted), got in zip(module(whole.model).named_parameters(), module(part.model).parameters(), strict=True):
        assert torch.equal(got, wanted), name
    assert part.optimizer.param_groups[0]["step"] == whole.optimizer.param_groups[0]["step"] == 4
