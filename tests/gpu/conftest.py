"""Scripts see a GPU here, which the other tests hide from them: one, unless a test asks for more."""

import os

import pytest

from tests import launching


@pytest.fixture(autouse=True)
def gpus(monkeypatch):
    """Give the scripts this many of the visible GPUs; they start a process for each."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0,1,2,3").split(",")

    def show(number: int) -> None:
        monkeypatch.setattr(launching, "HIDDEN", {"CUDA_VISIBLE_DEVICES": ",".join(visible[:number])})

    show(1)
    return show
