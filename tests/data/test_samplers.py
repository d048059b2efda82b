"""Batches are a pure function of the samples consumed: every sample once a pass, the same ones after a restart."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from megatron_patch.data.batches import ABSENT, BatchPlan, MicroBatchSampler, micro_batches


@pytest.mark.parametrize("replicas, micro", [(1, 1), (1, 4), (2, 2), (4, 1)])
def test_every_sample_is_dealt_out_once_a_pass(replicas, micro):
    plan = BatchPlan(11, 4, micro, replicas, shuffle_seed=5, passes=2)
    ranks = [list(MicroBatchSampler(plan, rank)) for rank in range(replicas)]
    assert {len(rank) for rank in ranks} == {2 * 3 * 4 // (micro * replicas)}, "every rank takes the same number of steps"
    dealt = Counter(sample for rank in ranks for batch in rank for sample in batch)
    assert dealt == {**{sample: 2 for sample in range(11)}, ABSENT: 2}
    first = [plan.global_batch(number) for number in range(3)]
    second = [plan.global_batch(number) for number in range(3, 6)]
    assert first != second and [len(batch) for batch in first] == [4, 4, 3]


@pytest.mark.parametrize("shuffle_seed", [None, 5])
@pytest.mark.parametrize("replicas, micro", [(1, 4), (2, 1), (2, 2), (4, 1)])
def test_a_global_batch_is_the_same_samples_however_it_is_dealt_out(replicas, micro, shuffle_seed):
    """Over three passes, each with an incomplete last batch; a run may go on with other replicas and micro-batches."""
    wanted = list(MicroBatchSampler(BatchPlan(11, 4, 4, 1, shuffle_seed, 3), 0))
    plan, each = BatchPlan(11, 4, micro, replicas, shuffle_seed, 3), 4 // (micro * replicas)
    ranks = [list(MicroBatchSampler(plan, rank)) for rank in range(replicas)]
    got = [[rank[number * each + place] for place in range(each) for rank in ranks] for number in range(9)]
    assert [sum(batch, []) for batch in got] == wanted


def test_a_restart_deals_out_what_was_left():
    plan = BatchPlan(11, 4, 2, 2, shuffle_seed=5, passes=3)
    whole = list(MicroBatchSampler(plan, rank=1))
    assert list(MicroBatchSampler(plan, rank=1, first=4)) == whole[4:]


def test_indexed_data_keeps_its_order():
    assert [BatchPlan(8, 4, 1, 1).global_batch(number) for number in range(2)] == [[0, 1, 2, 3], [4, 5, 6, 7]]


class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return 3

    def __getitem__(self, index):
        row = torch.full((5,), index)
        return {"tokens": row, "labels": row, "loss_mask": torch.ones(5), "position_ids": torch.arange(5)}


def test_absent_samples_teach_nothing_and_positions_stay_behind():
    plan = BatchPlan(3, 4, 2, 1, passes=1)
    batches = list(micro_batches(Rows(), MicroBatchSampler(plan, 0), vocab_size=3, num_workers=0, pin_memory=False))
    assert [batch["loss_mask"].sum(1).tolist() for batch in batches] == [[5, 5], [5, 0]]
    assert all(set(batch) == {"tokens", "labels", "loss_mask"} for batch in batches)


def test_a_token_outside_the_vocabulary_is_a_sentence():
    sampler = MicroBatchSampler(BatchPlan(3, 3, 3, 1, passes=1), 0)
    with pytest.raises(ValueError, match="tokens from 0 to 2, and the model has 2 rows"):
        next(micro_batches(Rows(), sampler, vocab_size=2, num_workers=0, pin_memory=False))
