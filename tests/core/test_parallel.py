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
