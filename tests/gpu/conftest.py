"""Scripts see a GPU here, which the other tests hide from them: one, unless a test asks for more."""

import os

import pytest
import torch
from filelock import FileLock

from tests import launching


@pytest.fixture(autouse=True)
def gpus(monkeypatch):
    """Give the scripts this many of the visible GPUs; they start a process for each.

    Workers of pytest-xdist begin to count at different ones.
    """
    there = ",".join(map(str, range(torch.cuda.device_count())))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", there).split(",")
    first = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % len(visible)
    ordered = visible[first:] + visible[:first]

    def show(number: int) -> None:
        monkeypatch.setattr(launching, "HIDDEN", {"CUDA_VISIBLE_DEVICES": ",".join(ordered[:number])})

    show(1)
    return show


@pytest.fixture(scope="session")
def shared(tmp_path_factory):
    """A folder that all workers of pytest-xdist have, and a lock for it."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    return folder / "shared", FileLock(folder / "shared.lock")
