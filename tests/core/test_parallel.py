"""Process groups and seeds: what processes share, and what differs between them."""

from __future__ import annotations

import megatron_patch.core.device  # noqa: F401, I001

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from megatron.core import parallel_state

from megatron_patch.core import parallel


def test_groups_made_meanwhile_are_bound_to_no_device(monkeypatch):
    """A group that is bound to a device gets an NCCL communicator at once, so groups must not be bound."""
    world = SimpleNamespace(bound_device_id="cuda:3")
    monkeypatch.setattr(torch.distributed, "group", SimpleNamespace(WORLD=world))
    with pytest.raises(RuntimeError), parallel._communicators_at_first_use():
        assert world.bound_device_id is None
        raise RuntimeError
    assert world.bound_device_id == "cuda:3"


def test_random_streams_are_left_alone_for_a_while():
    """To read a random state while a CUDA graph is recorded is an error, so none is read."""
    tracker = parallel.tensor_parallel.get_cuda_rng_tracker()
    with pytest.raises(Exception, match="is not added"), tracker.fork("no such stream"):
        pass
    with parallel.without_random_streams(), tracker.fork("no such stream"):
        pass
    with pytest.raises(Exception, match="is not added"), tracker.fork("no such stream"):
        pass


@pytest.mark.parametrize("stage", [0, 1, 3])
def test_each_pipeline_stage_draws_numbers_of_its_own(monkeypatch, stage):
    """Megatron's rule: the seed plus 100 for each stage. With one seed the layers of two stages would begin equal."""
    monkeypatch.setattr(parallel_state, "get_pipeline_model_parallel_rank", lambda: stage)
    monkeypatch.setattr(parallel.tensor_parallel, "model_parallel_cuda_manual_seed", lambda seed: seeds.append(seed))
    seeds: list[int] = []
    parallel.seed_everything(7)
    got = torch.rand(3).tolist(), float(np.random.rand()), random.random()
    seed = 7 + 100 * stage
    wanted = torch.rand(3, generator=torch.Generator().manual_seed(seed)).tolist()
    assert got == (wanted, float(np.random.RandomState(seed).rand()), random.Random(seed).random()) and seeds == [seed]
