"""Loader processes end with their rank and when it says so, by no signal that others send to every process of a job."""

from __future__ import annotations

import megatron_patch.core.device  # noqa: F401, I001

import errno
import os
import signal
import subprocess
import sys

import pytest
import torch

from megatron_patch.cli.session import _LOADER_ENDED, _ended_loader, _sentence
from megatron_patch.data.batches import BatchPlan, MicroBatchSampler, micro_batches
from megatron_patch.errors import UserError
from tests.launching import ROOT, environment

# A rank whose bug ends it while a loader works for it. What it holds lives until Python has ended.
RANK = """
import multiprocessing, subprocess
import torch
from megatron_patch.data.batches import BatchPlan, MicroBatchSampler, micro_batches

class Rows(torch.utils.data.Dataset):
    def __getitem__(self, index):
        return {"tokens": torch.arange(4), "labels": torch.arange(4), "loss_mask": torch.ones(4)}

plan = BatchPlan(samples=64, global_batch_size=2, micro_batch_size=2, data_parallel_size=1, shuffle_seed=None, passes=1)
batches = micro_batches(Rows(), MicroBatchSampler(plan, 0, 0, 32), vocab_size=9, num_workers=1, pin_memory=False)
next(batches)
(loader,) = multiprocessing.active_children()
for name in ("TERM", "INT"):
    subprocess.run(["sh", "-c", f"kill -{name} {loader.pid}"], check=True)
count = 1 + sum(1 for _ in zip(range(30), batches))
print(count, "batches", flush=True)
raise RuntimeError("a bug")
"""


def test_a_bug_of_the_rank_ends_it_and_its_loader_and_a_stranger_s_signal_ends_neither():
    done = subprocess.run(
        [sys.executable, "-c", RANK], cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=90, check=False
    )
    assert done.stdout == "31 batches\n" and done.returncode == 1 and "RuntimeError: a bug" in done.stderr


class Failing(torch.utils.data.Dataset):
    """Data on a disk that fails, or whose reader a signal ends."""

    def __init__(self, how: int | OSError) -> None:
        self.how = how

    def __getitem__(self, index: int) -> dict:
        if isinstance(self.how, OSError):
            raise self.how
        signal.signal(self.how, signal.SIG_DFL)  # a fault handler of the tests' own would print its stack
        os.kill(os.getpid(), self.how)
        raise AssertionError("it has ended")


def first_batch(how: int | OSError) -> None:
    plan = BatchPlan(samples=8, global_batch_size=2, micro_batch_size=2, data_parallel_size=1, passes=1)
    next(micro_batches(Failing(how), MicroBatchSampler(plan, 0), vocab_size=9, num_workers=1, pin_memory=False))


def test_what_the_system_refuses_a_loader_is_a_sentence_of_the_rank():
    error = OSError(errno.EIO, os.strerror(errno.EIO), "/data/corpus.bin")
    with pytest.raises(UserError) as refused:
        first_batch(error)
    assert _sentence(refused.value) == "/data/corpus.bin: Input/output error; the disk, or the network to it, fails."


def test_a_loader_that_a_signal_ends_is_told_with_what_ends_loaders():
    with pytest.raises(RuntimeError) as ended:
        first_batch(signal.SIGBUS)
    assert str(ended.value).startswith(_LOADER_ENDED)
    said = _ended_loader(ended.value)
    assert said.startswith("a process that loads data has ended (DataLoader worker (pid") and "shared memory is full" in said
    assert "\n" not in said
