"""Optimizer state goes from ZeRO-1 to a run without and back, whatever the precision."""

from __future__ import annotations

import megatron_patch.core.device  # noqa: F401  prepares megatron-core for this machine

import pytest
import torch
from megatron.core import dist_checkpointing

from megatron_patch.checkpoint.restore import restore
from megatron_patch.checkpoint.save import RunProgress, save_checkpoint
from megatron_patch.train.log import RunLog
from megatron_patch.train.setup import build_state
from megatron_patch.train.step import train_step
from tests.tiny import tiny_batches, tiny_config


def fp32_values(folder, precision):
    """Moments and main weights of a checkpoint by name; in fp32 the model's own weights are the main ones."""
    found = {}
    for name, value in dist_checkpointing.load_plain_tensors(str(folder)).items():
        kind, _, of = name.removeprefix("optimizer.state.").partition(".")
        if not name.startswith("optimizer.state."):
            kind, of = ("main", name) if precision == "fp32" else ("model", name)
        kind = "main" if kind in ("param", "fp32_param") else kind
        if kind != "model" and isinstance(value, torch.Tensor):
            assert torch.equal(found.setdefault((kind, of), value), value), name
    return found


@pytest.mark.parametrize("zero", [True, False], ids=["from ZeRO-1", "to ZeRO-1"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_state_is_the_same_bits_after_the_change(alone, tmp_path, precision, zero):
    def state_of(folder, zero):
        config = tiny_config(output_path=str(tmp_path / folder), precision=precision, use_distributed_optimizer=zero)
        return config, build_state(config, alone, RunLog(config, active=False), 4)

    def save(config, state):
        return save_checkpoint(config, state.model, state.optimizer, state.scheduler, RunProgress(2, 4, 0, 0))

    config, before = state_of("before", zero)
    for number in range(3):
        train_step(before, tiny_batches(number, 2))
        before.scheduler.step(increment=1)
    saved = save(config, before)
    config, after = state_of("after", not zero)
    restore(saved, after.model, after.optimizer, after.scheduler)
    wanted, got = fp32_values(saved, precision), fp32_values(save(config, after), precision)
    assert wanted.keys() == got.keys() and {kind for kind, _ in got} == {"main", "exp_avg", "exp_avg_sq"}
    for key, value in wanted.items():
        assert value.dtype == torch.float32 and value.abs().sum() > 0 and torch.equal(got[key], value), key
    groups, others = before.optimizer.param_groups, after.optimizer.param_groups
    assert [(g["step"], g["lr"], g["weight_decay"]) for g in groups] == [(g["step"], g["lr"], g["weight_decay"]) for g in others]
    assert float(before.optimizer.get_loss_scale()) == float(after.optimizer.get_loss_scale())
    train_step(after, tiny_batches(3, 2))
    assert after.optimizer.param_groups[0]["step"] == groups[0]["step"] + 1
