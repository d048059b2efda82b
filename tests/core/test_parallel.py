from types import SimpleNamespace

import pytest
import torch

from megatron_patch.core import parallel


def test_groups_made_meanwhile_are_bound_to_no_device(monkeypatch):
    """Bound ones get an NCCL communicator at once."""
    world = SimpleNamespace(bound_device_id="cuda:3")
    monkeypatch.setattr(torch.distributed, "group", SimpleNamespace(WORLD=world))
    with pytest.raises(RuntimeError), parallel._communicators_at_first_use():
        assert world.bound_device_id is None
        raise RuntimeError
    assert world.bound_device_id == "cuda:3"


def test_random_streams_are_left_alone_for_a_while():
    """Reading one while a CUDA graph is recorded is an error."""
    tracker = parallel.tensor_parallel.get_cuda_rng_tracker()
    with pytest.raises(Exception, match="is not added"), tracker.fork("no such stream"):
        pass
    with parallel.without_random_streams(), tracker.fork("no such stream"):
        pass
    with pytest.raises(Exception, match="is not added"), tracker.fork("no such stream"):
        pass
