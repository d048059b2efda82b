"""What a rank says of an error that a user can mend."""

from __future__ import annotations

import pytest
import torch

from megatron_patch.cli.training import _sentence
from megatron_patch.data.loading import micro_batches
from megatron_patch.data.samplers import BatchPlan, MicroBatchSampler


class Rows(torch.utils.data.Dataset):
    def __getitem__(self, index):
        row = torch.full((4,), 9)
        return {"tokens": row, "labels": row, "loss_mask": torch.ones(4)}


@pytest.mark.parametrize("workers", [0, 1])
def test_a_loader_s_error_is_one_sentence(workers):
    plan = BatchPlan(
        samples=4, global_batch_size=2, micro_batch_size=2, data_parallel_size=1, shuffle_seed=None, passes=1
    )
    batches = micro_batches(Rows(), MicroBatchSampler(plan, 0, 0, 2), vocab_size=9, num_workers=workers, pin_memory=False)
    with pytest.raises(ValueError) as error:
        next(batches)
    assert _sentence(error.value).startswith("The data holds tokens from 9 to 9, and the model has 9 rows")
