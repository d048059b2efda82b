"""Loader processes end with their rank and when it says so, and by no signal that others send to every process of a job."""

from __future__ import annotations

import subprocess
import sys

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
