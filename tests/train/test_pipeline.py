"""The order of a pipeline stage's work: 1F1B, the input's gradient sent before the weights' gradients are computed.

That the numbers are those of core's schedule is in test_graphs.py; recording needs a GPU: see tests/gpu."""

from __future__ import annotations

import megatron_patch.core.device  # noqa: F401

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from megatron_patch.core import parallel
from megatron_patch.train import pipeline
from megatron_patch.train.pipeline import PipelinePasses, StageWork


class Stage:
    """A stage that computes nothing and notes what it is asked for.

    Attributes:
        done: F and B for passes, W for weights' gradients, and transfers by their names.
    """

    def __init__(self, number: int, stages: int, layout: parallel.Layout, micro_batches: int, monkeypatch) -> None:
        self.number, self.stages, self.done = number, stages, []
        transfers = SimpleNamespace(stage=number, stages=stages, exchange=self.exchange)
        monkeypatch.setattr(parallel, "StageTransfers", lambda: transfers)
        layout = replace(layout, is_first_stage=number == 0, is_last_stage=number == stages - 1)
        work = StageWork(self.forward, self.backward, self.weights)
        self.passes = PipelinePasses(work, layout, (2, 1, 4), torch.float32, micro_batches, reduces=True, tune=list)

    def exchange(self, **tensors):
        ends = {"prev": self.number == 0, "next": self.number == self.stages - 1}
        self.done += [name for name, tensor in tensors.items() if tensor is not None and not ends[name.split("_")[1]]]
        return []

    def forward(self, batch, received):
        self.done.append(f"F{int(batch['tokens'])}")
        whole = torch.ones(2, 1, 4) if received is None else received * 2
        return whole, torch.tensor([1.0, 2.0], dtype=torch.float64)

    def backward(self, output, gradient, closes, keep):
        self.done.append("B!" if closes else "B")
        if output.requires_grad:
            output.sum().backward(retain_graph=keep)
        return None if self.number == 0 else []

    def weights(self, later, closes):
        self.done.append("W!" if closes else "W")

    def step(self, micro_batches: int) -> str:
        batches = ({"tokens": torch.tensor(number), "loss_mask": torch.ones(())} for number in range(micro_batches))
        self.done.clear()
        sums = self.passes.run(batches, micro_batches)
        assert sums.tolist() == [micro_batches, 2 * micro_batches]
        return " ".join(self.done)


# Written out by hand; ! closes the step.
ORDERS = {
    (0, 3): "F0 send_next F1 send_next F2 send_next recv_next B F3 send_next recv_next B recv_next B recv_next B!",
    (1, 3): "recv_prev F0 send_next recv_prev F1 send_next recv_next B send_prev recv_prev W F2 send_next recv_next B send_prev "
    "recv_prev W F3 send_next recv_next B send_prev W recv_next B! send_prev W!",
    (2, 3): "recv_prev F0 B send_prev recv_prev W F1 B send_prev recv_prev W F2 B send_prev recv_prev W F3 B! send_prev W!",
}


@pytest.mark.parametrize("number, stages", ORDERS)
def test_a_stage_sends_its_input_s_gradient_before_it_computes_its_weights(alone, monkeypatch, number, stages):
    stage = Stage(number, stages, alone, 4, monkeypatch)
    assert stage.step(4) == ORDERS[number, stages]


def test_fewer_micro_batches_than_stages(alone, monkeypatch):
    stage = Stage(0, 4, alone, 2, monkeypatch)
    assert stage.step(2) == "F0 send_next F1 send_next recv_next B recv_next B!" and len(stage.passes.slots) == 2


def test_a_forward_graph_shares_its_memory_with_no_other(alone, monkeypatch):
    """What it leaves must outlast all that runs before its backward pass, the graphs recorded earlier too."""
    pools = []

    def record(work, pool):
        work()
        made = ("pool", len(pools)) if pool is None else pool
        pools.append(made)
        return SimpleNamespace(replay=lambda: None, pool=lambda: made), work()

    stage = Stage(0, 3, alone, 6, monkeypatch)
    monkeypatch.setattr(pipeline, "record", record)
    stage.step(6)
    stage.step(6)
    recorded = stage.passes.recorded
    forward = [graph.pool() for key, (graph, _, _) in recorded.items() if key[0] == "forward"]
    backward = [graph.pool() for key, (graph, _, _) in recorded.items() if key[0] != "forward"]
    assert len(forward) == len(set(forward)) == 3 and len(backward) > 3
    assert len(set(backward)) == 1 and not set(backward) & set(forward)
