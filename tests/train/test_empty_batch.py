"""A global batch without a token to learn changes no weight, no moment and no count, whatever updates them."""

from __future__ import annotations

import megatron_patch.core.device as device

import json

import pytest

from megatron_patch.train import step as steps
from tests.launching import run_ranks
from tests.tiny import tiny_config
from tests.train.empty_batch_worker import compare
from tests.train.passes_worker import Launched


@pytest.mark.parametrize("passes", [False, True], ids=["schedule", "passes"])
@pytest.mark.parametrize("sharded", [False, True], ids=["plain", "DO"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_an_empty_batch_leaves_no_trace(alone, monkeypatch, precision, sharded, passes):
    if passes:  # as CUDA graphs run a step
        monkeypatch.setattr(device, "memory_left", lambda: (1 << 30, 1 << 30))
        monkeypatch.setattr(steps, "why_no_graphs", lambda *_: "")
        monkeypatch.setattr(steps, "MicroBatchGraphs", Launched)
    compare(tiny_config(precision=precision, use_distributed_optimizer=sharded), alone)


@pytest.mark.parametrize(
    "layout",
    [dict(), dict(tensor_model_parallel_size=2), dict(pipeline_model_parallel_size=2)],
    ids=["DP2 with DO", "TP2", "PP2"],
)
def test_an_empty_batch_leaves_no_trace_on_two_processes(layout):
    """With PP the first stage learns of the batch's tokens from the last one."""
    run_ranks("tests.train.empty_batch_worker", json.dumps(layout), count=2)
