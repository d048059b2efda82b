"""What a training checkpoint holds beyond weights and optimizer, and in which order it becomes one; in this process."""

from __future__ import annotations

import megatron_patch.core.device  # noqa: F401, I001

import os
import random

import numpy as np
import pytest
import torch

from megatron_patch.checkpoint.refusals import SaveFailed
from megatron_patch.checkpoint.restore import restore
from megatron_patch.checkpoint.save import RunProgress, save_checkpoint
from megatron_patch.core import parallel
from megatron_patch.folders.tracker import read_tracker
from megatron_patch.train.log import RunLog
from megatron_patch.train.setup import build_state
from megatron_patch.train.step import train_step
from tests.tiny import tiny_batches, tiny_config

PROGRESS = RunProgress(iteration=3, consumed_samples=6, skipped_iterations=1, nan_iterations=0)


@pytest.fixture
def state(alone, tmp_path):
    """After an iteration, before which Adam has no state to save."""
    config = tiny_config(output_path=str(tmp_path))
    built = build_state(config, alone, RunLog(config, active=False), 4)
    train_step(built, tiny_batches(0, 2))
    return built


def draw() -> list[float]:
    """One number of each stream that a checkpoint keeps."""
    from megatron.core.tensor_parallel import get_cuda_rng_tracker

    with get_cuda_rng_tracker().fork():
        inside = torch.rand(()).item()
    return [random.random(), float(np.random.rand()), torch.rand(()).item(), inside]


def test_random_streams_go_on_where_they_were(state):
    folder = save_checkpoint(state.config, state.model, state.optimizer, state.scheduler, PROGRESS)
    wanted = draw()
    parallel.seed_everything(99)
    assert all(got != number for got, number in zip(draw(), wanted))
    assert restore(folder, state.model, state.optimizer, state.scheduler) == PROGRESS
    assert draw() == wanted


def test_the_tracker_names_nothing_that_has_no_name_yet(state, monkeypatch):
    """A power cut or a full disk at the rename leaves the last checkpoint the last one."""
    root = save_checkpoint(state.config, state.model, state.optimizer, state.scheduler, PROGRESS).parent
    replace = os.replace

    def broken(source, target):
        if os.path.isdir(source):
            raise OSError("the disk has gone")
        replace(source, target)

    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(SaveFailed, match="the disk has gone"):
        later = RunProgress(iteration=4, consumed_samples=8, skipped_iterations=1, nan_iterations=0)
        save_checkpoint(state.config, state.model, state.optimizer, state.scheduler, later)
    assert read_tracker(root) == "3" and not (root / "iter_0000004").exists()
