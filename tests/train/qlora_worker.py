"""Training over weights in 4 bits, compared with training over the same numbers in the model's dtype.

It runs as one process, or as one of two.
"""

from __future__ import annotations

import megatron_patch.core.device  # noqa: F401

import json
import sys
from dataclasses import replace

import torch

from megatron_patch.config import Options, TrainConfig
from megatron_patch.core import parallel
from megatron_patch.kernels.nf4 import dequantize_reference
from megatron_patch.model.packed_weight import PackedParameter
from megatron_patch.train.log import RunLog
from megatron_patch.train.setup import build_state
from megatron_patch.train.state import TrainState
from megatron_patch.train.step import train_step
from tests.tiny import tiny_batches, tiny_config


def packed(state: TrainState) -> dict[str, PackedParameter]:
    return {name: one for name, one in state.model.module.named_parameters() if isinstance(one, PackedParameter)}


def built(config: TrainConfig, layout: parallel.Layout) -> TrainState:
    parallel.seed_everything(1)
    state = build_state(config, layout, RunLog(config, active=False), 4)
    state.scheduler.step(increment=1)  # a learning rate, so that adapters are more than zero from the second step on
    return state


def steps(state: TrainState, layout: parallel.Layout) -> list[float]:
    """The losses of four steps, and their gradients' norms."""
    found = []
    for seed in range(4):
        batches = list(tiny_batches(seed, 2))[layout.data_parallel_rank :: layout.data_parallel_size]
        result = train_step(state, iter(batches))
        found += [float(result.loss), float(result.grad_norm)]
    return found


def compare(config: TrainConfig, layout: parallel.Layout) -> None:
    """Raises AssertionError unless both give the same bits, or where the 4 bits took memory of their weight's size."""
    config = replace(config, options=Options(lora_rank=4, qlora=True))
    state = built(config, layout)
    frozen = packed(state)
    assert len(frozen) == 4 * config.model.num_layers // config.pipeline_model_parallel_size
    assert all(one.untyped_storage().nbytes() <= 8 and one.packed.nbytes < 0.6 * one.numel() for one in frozen.values())
    assert not any(
        name.endswith(("qkv.weight", "proj.weight", "fc1.weight", "fc2.weight")) for name in state.model.sharded_state_dict()
    )
    got = steps(state, layout)
    other = built(replace(config, options=Options(lora_rank=4)), layout)
    dense = dict(other.model.module.named_parameters())
    with torch.no_grad():
        for name, one in frozen.items():
            assert not torch.equal(dense[name], dequantize_reference(one.packed))
            dense[name].copy_(dequantize_reference(one.packed))
    assert got == steps(other, layout) and got[2] != got[0]


def main(changed: str) -> None:
    config = tiny_config(**json.loads(changed))
    compare(config, parallel.start(config))
    parallel.stop()


if __name__ == "__main__":
    main(sys.argv[1])
