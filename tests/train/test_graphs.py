"""Two micro-batches in one pass are the same step as one after the other. Capturing needs a GPU: see tests/gpu."""

from __future__ import annotations

import megatron_patch.core.device as device

import os

import pytest
import torch

from megatron_patch.core import parallel
from megatron_patch.processes import free_port
from megatron_patch.train import step as steps
from megatron_patch.train.graphs import MicroBatchGraphs
from megatron_patch.train.log import RunLog
from megatron_patch.train.setup import build_state
from tests.tiny import tiny_config

SAMPLES = 4


@pytest.fixture(scope="module")
def alone():
    """A group of one process, and a configuration of four micro-batches a step."""
    os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()))
    config = tiny_config(global_batch_size=SAMPLES, precision="fp32")
    layout = parallel.start(config)
    yield config, layout
    parallel.stop()


def batches(number: int):
    """Samples of unequal numbers of learnt tokens."""
    generator = torch.Generator().manual_seed(number)
    for sample in range(SAMPLES):
        tokens = torch.randint(0, 2048, (1, 17), generator=generator)
        mask = (torch.arange(16) >= 4 * sample).int()[None]
        yield {"tokens": tokens[:, :-1], "labels": tokens[:, 1:].contiguous(), "loss_mask": mask}


def two_steps(config, layout, *, paired: bool):
    parallel.seed_everything(1)
    state = build_state(config, layout, RunLog(config, active=False), 4)
    results = []
    for number in range(2):
        if paired:
            # New ones, so that nothing is captured.
            state.graphs = MicroBatchGraphs(lambda batch: steps._forward_backward(state, batch))
            state.steps_here = 0
        results.append(steps.train_step(state, batches(number)))
        assert state.graphs is None or state.graphs.together == 2
    return results


def test_pairs_equal_single_micro_batches(alone, monkeypatch):
    """The rehearsal's gradients, too, must be gone before the step's own."""
    monkeypatch.setattr(device, "reset_peak_memory", lambda: 0)
    monkeypatch.setattr(device, "memory_left", lambda: (1 << 30, 1 << 30))
    for got, wanted in zip(two_steps(*alone, paired=True), two_steps(*alone, paired=False), strict=True):
        assert got.tokens == wanted.tokens == 40
        assert got.loss == pytest.approx(wanted.loss, rel=1e-6)
        assert got.grad_norm == pytest.approx(wanted.grad_norm, rel=1e-5)


@pytest.mark.parametrize("taken, together", [(493, 2), (494, 1)])
def test_a_pair_must_leave_some_memory(monkeypatch, taken, together):
    monkeypatch.setattr(device, "memory_left", lambda: (1000, 1000))
    graphs = MicroBatchGraphs(lambda batch: batch)
    graphs.pair_if_it_fits(taken)
    assert graphs.together == together
