"""Two micro-batches in one pass are the same step as one after the other. Capturing needs a GPU: see tests/gpu."""

from __future__ import annotations

import megatron_patch.core.device as device

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from megatron_patch.config import Options
from megatron_patch.core import parallel
from megatron_patch.kernels import products, unfused_attention
from megatron_patch.train import step as steps
from megatron_patch.train.graphs import MicroBatchGraphs, why_no_graphs
from megatron_patch.train.kept_probabilities import bytes_of_layer
from megatron_patch.train.log import RunLog
from megatron_patch.train.setup import build_state
from tests.launching import run_ranks
from tests.tiny import tiny_config
from tests.train.passes_worker import Launched, rows, two_steps


@pytest.mark.parametrize(
    "samples, pairs, passes",
    [(4, True, [1, 4, 4]), (6, True, [1, *[2, 2, 2] * 2]), (3, True, [1, 1, 1] * 2), (4, False, [1, 1, 1, 1] * 2)],
    ids=["fours", "pairs", "odd", "off"],
)
def test_passes_equal_single_micro_batches(alone, monkeypatch, samples, pairs, passes):
    """A rehearsal of one comes first, once, and its gradients must be gone before the step's own."""
    config = tiny_config(global_batch_size=samples, precision="fp32")
    config = replace(config, options=Options(pair_micro_batches=pairs))
    wanted, _ = two_steps(config, alone)
    monkeypatch.setattr(device, "memory_left", lambda: (1 << 30, 1 << 30))
    monkeypatch.setattr(steps, "why_no_graphs", lambda *_: "")
    monkeypatch.setattr(steps, "MicroBatchGraphs", Launched)
    got, state = two_steps(config, alone)
    assert state.graphs.passes == [(number, False) for number in passes]
    for ours, theirs in zip(got, wanted, strict=True):
        assert ours.tokens == theirs.tokens == 16 * samples - 3 * sum(range(samples))
        assert ours.loss == pytest.approx(theirs.loss, rel=1e-6)
        assert ours.grad_norm == pytest.approx(theirs.grad_norm, rel=1e-5)


TP2, PP2, PP4 = dict(tensor_model_parallel_size=2), dict(pipeline_model_parallel_size=2), dict(pipeline_model_parallel_size=4)
SP, AC = dict(sequence_parallel=True), dict(recompute="full")


_LAYOUTS = {
    "DP2 with DO": (2, dict()),
    "DP2": (2, dict(use_distributed_optimizer=False)),
    "TP2 with SP": (2, {**TP2, **SP}),
    "TP2 DP2 with SP": (4, {**TP2, **SP}),
    "PP2 with AC full": (2, {**PP2, **AC}),
    "PP2 DP2": (4, PP2),
    "PP4": (4, PP4),
    "PP2 DP2 in FP8": (4, {**PP2, "precision": "fp8"}),
    "TP2 PP2 with SP": (4, {**TP2, **PP2, **SP}),
}
# Where ranks may read each other's memory: sequences are split, or ZeRO shares what is updated.
_COPIES = {
    "TP2 DP2 with SP": _LAYOUTS["TP2 DP2 with SP"],
    "TP2 PP2 with SP": _LAYOUTS["TP2 PP2 with SP"],
    "TP2 DP2 in FP8": (4, {**TP2, "precision": "fp8"}),
}


@pytest.mark.parametrize(
    "processes, layout, way",
    [
        pytest.param(*layout, way, id=f"{name}-{way}")
        for way, layouts in (("collectives", _LAYOUTS), ("copies", _COPIES))
        for name, layout in layouts.items()
    ],
)
def test_passes_of_several_processes_equal_core_s_schedule(processes, layout, way):
    """core runs single micro-batches; passes take pairs without a pipeline, and the last one reduces gradients."""
    run_ranks("tests.train.passes_worker", json.dumps(layout), way, count=processes)


class Collectives(TorchDispatchMode):
    """Notes which collectives ran, and over which group."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple[str, str]] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "c10d":
            group = next(argument for argument in args if isinstance(argument, torch.ScriptObject))
            self.seen.add((str(function), torch.distributed.ProcessGroup.unbox(group).group_name))
        return function(*args, **(kwargs or {}))


def test_the_rehearsal_counts_memory_when_all_that_stays_is_there(alone, monkeypatch):
    """Adam's state and every communicator of a step are there then, and no products are measured for it alone."""
    monkeypatch.setattr(steps, "why_no_graphs", lambda *_: "")
    monkeypatch.setattr(steps, "MicroBatchGraphs", Launched)
    monkeypatch.setattr(parallel, "any_rank", lambda here: here)
    monkeypatch.setattr(products, "is_tunable", lambda *_: True)  # whoever tries algorithms here fails: there are none
    config = tiny_config(global_batch_size=4)
    state = build_state(config, alone, RunLog(config, active=False), 4)
    adam, by_then = steps.optim.single(state.optimizer).optimizer, set()

    def memory_left():
        monkeypatch.setattr(products, "is_tunable", lambda *_: False)
        assert all(adam.state[parameter] for group in adam.param_groups for parameter in group["params"])
        by_then.update(collectives.seen)
        return 1 << 30, 1 << 30

    monkeypatch.setattr(device, "memory_left", memory_left)
    with Collectives() as collectives:
        steps.train_step(state, rows(0, 4))
    # The losses and tokens, and the gradients' norm; a process alone gathers no weights.
    assert state.joins_micro_batches and by_then == collectives.seen and len(by_then) == 2, collectives.seen


@pytest.mark.parametrize(
    "left, together, says",
    [
        (4612, 4, "4 micro-batches go through the model in one pass: 4 need"),
        (4611, 2, "2 micro-batches go through the model in one pass: 2 need"),
        (2612, 2, "2 micro-batches go through the model in one pass: 2 need"),
        (2611, 1, "one micro-batch goes through the model in one pass: 2 need"),
    ],
)
def test_a_pass_leaves_room_for_an_evaluation_and_some_more(monkeypatch, left, together, says):
    monkeypatch.setattr(device, "memory_left", lambda: (left, 1000))
    monkeypatch.setattr(parallel, "any_rank", lambda here: here)
    graphs = MicroBatchGraphs(lambda batch, closes: batch, reduces=False)
    graphs.join_what_fits((4, 2), 1000, 600)
    assert graphs.together == together and graphs.decision.startswith(says)


@pytest.mark.parametrize("left, together, keeping", [(5824, 4, 3), (5823, 2, 3), (3024, 2, 2), (3023, 2, 1), (2612, 2, 0)])
def test_what_a_pass_leaves_lets_layers_keep_probabilities(monkeypatch, left, together, keeping):
    """100 bytes a layer and micro-batch. Four in a pass are not worth a layer that computes again."""
    monkeypatch.setattr(device, "memory_left", lambda: (left, 1000))
    monkeypatch.setattr(parallel, "any_rank", lambda here: here)
    graphs = MicroBatchGraphs(lambda batch, closes: batch, reduces=False)
    graphs.join_what_fits((4, 2), 1000, 600, layers=3, kept=100)
    assert (graphs.together, graphs.keeping) == (together, keeping)


def test_kept_probabilities_change_no_bit(alone, monkeypatch):
    """A layer that keeps them computes none in its backward pass; losses and norms are those of none kept."""
    monkeypatch.setattr(steps, "why_no_graphs", lambda *_: "")
    monkeypatch.setattr(steps, "MicroBatchGraphs", Launched)
    config = tiny_config(global_batch_size=4, precision="fp32", recompute="sel", use_flash_attn=False)
    layers, one = config.model.num_layers, bytes_of_layer(config)
    computed: list[int] = []
    real = unfused_attention._probabilities
    monkeypatch.setattr(unfused_attention, "_probabilities", lambda *given: (computed.append(1), real(*given))[1])
    results, times = {}, {}
    for kept in (0, 1, layers):
        monkeypatch.setattr(device, "memory_left", lambda: (2 * kept * one, 0))  # noqa: B023  for passes of two, no spare
        computed.clear()
        results[kept], state = two_steps(config, alone)
        assert (state.graphs.together, state.graphs.keeping) == (2, kept)
        times[kept] = len(computed)
    assert results[1] == results[layers] == results[0]
    assert times[0] - times[1] == 4 and times[0] - times[layers] == 4 * layers, "two steps of two passes"


def test_each_half_of_a_recorded_pass_is_its_own_micro_batch():
    graphs = MicroBatchGraphs(lambda batch, closes: batch, reduces=False)
    static, seen = {"tokens": torch.zeros(4, 3, dtype=torch.int64)}, []
    recorded = SimpleNamespace(replay=lambda: seen.append(static["tokens"].clone()))
    graphs.together, graphs.captured = 2, {(True, False): (recorded, static, torch.zeros(2))}
    halves = [{"tokens": torch.arange(6).view(2, 3) + 10 * number} for number in range(2)]
    graphs._replay(halves, opens=True, closes=False)
    assert torch.equal(seen[0], torch.cat([half["tokens"] for half in halves]))


def test_a_pass_must_fit_on_every_rank(monkeypatch):
    monkeypatch.setattr(device, "memory_left", lambda: (10_000, 1000))
    monkeypatch.setattr(parallel, "any_rank", lambda here: True)
    graphs = MicroBatchGraphs(lambda batch, closes: batch, reduces=True)
    graphs.join_what_fits((4, 2), 1000, 600)
    assert graphs.together == 1 and "too little elsewhere" in graphs.decision


@pytest.mark.parametrize(
    "count, keys",
    [(1, ["opens and closes"]), (2, ["opens", "closes"]), (4, ["opens", "", "closes"])],
)
def test_a_pass_is_recorded_once_for_each_place_in_a_step(monkeypatch, count, keys):
    recorded = []

    def capture(group, closes):
        recorded.append(closes)
        return SimpleNamespace(replay=lambda: None), {}, torch.ones(2)

    graphs = MicroBatchGraphs(lambda batch, closes: batch, reduces=True)
    graphs.launched = True
    monkeypatch.setattr(graphs, "_capture", capture)
    for _ in range(2):
        assert graphs.run(iter([{}] * count), count).tolist() == [count, count]
    names = [" and ".join(name for name, so in zip(("opens", "closes"), key) if so) for key in graphs.captured]
    assert names == keys and recorded == ["closes" in name for name in names]
    graphs.close()
    assert not graphs.captured


@pytest.mark.parametrize(
    "changed",
    [
        dict(),
        dict(tensor_model_parallel_size=2),
        dict(pipeline_model_parallel_size=2),
        dict(recompute="full"),
        dict(recompute="sel", use_flash_attn=False),
        dict(options=Options(packing=True)),
    ],
)
def test_every_run_on_gpus_is_recorded(monkeypatch, changed):
    monkeypatch.setattr(device, "HAS_CUDA", True)
    assert why_no_graphs(tiny_config(**changed)) == ""


def test_what_speaks_against_graphs_is_said():
    assert why_no_graphs(tiny_config(options=Options(cuda_graphs=False))) == "there is no GPU, --cuda-graphs false"
