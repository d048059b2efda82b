"""Which samples make which global batch: a pure function of the samples consumed, so that a run resumes exactly."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.utils.data import Sampler

# The index for "no sample". It fills an incomplete last batch; `data.batches` gives it an all-zero loss mask.
ABSENT = -1


@dataclass(frozen=True)
class BatchPlan:
    """How the samples of a data set are dealt out. Sizes are samples.

    Attributes:
        shuffle_seed: None keeps the data set's own order (core's GPTDataset shuffles by itself); otherwise every pass
            is a new permutation of it.
        passes: passes over the data; None goes on for ever.
    """

    samples: int
    global_batch_size: int
    micro_batch_size: int
    data_parallel_size: int
    shuffle_seed: int | None = None
    passes: int | None = None

    @property
    def batches_per_pass(self) -> int:
        """The last one may be incomplete; it is trained on all the same."""
        return -(-self.samples // self.global_batch_size)

    def global_batch(self, index: int) -> list[int]:
        """Sample numbers of the global batch number `index`, counted from the first of the first pass."""
        epoch, place = divmod(index, self.batches_per_pass)
        start = place * self.global_batch_size
        stop = min(start + self.global_batch_size, self.samples)
        if self.shuffle_seed is None:
            return list(range(start, stop))
        return _permutation(self.samples, self.shuffle_seed + epoch)[start:stop].tolist()


_last_permutation: tuple[tuple[int, int], torch.Tensor] | None = None


def _permutation(samples: int, seed: int) -> torch.Tensor:
    """The order of one pass; kept, since the batches of a pass ask for it one after the other."""
    global _last_permutation
    if _last_permutation is None or _last_permutation[0] != (samples, seed):
        generator = torch.Generator().manual_seed(seed)
        _last_permutation = ((samples, seed), torch.randperm(samples, generator=generator))
    return _last_permutation[1]


class MicroBatchSampler(Sampler[list[int]]):
    """The micro-batches of one data-parallel rank, from the global batch number `first` on.

    A global batch is dealt out in runs of `micro_batch_size`, rank after rank. Where the last batch of a pass is
    incomplete, ABSENT fills it, so that every rank takes the same number of steps.
    """

    def __init__(self, plan: BatchPlan, rank: int, first: int = 0, last: int | None = None) -> None:
        self.plan = plan
        self.rank = rank
        self.first = first
        limit = None if plan.passes is None else plan.passes * plan.batches_per_pass
        self.last = limit if last is None else last

    def __iter__(self) -> Iterator[list[int]]:
        plan, index = self.plan, self.first
        step = plan.micro_batch_size * plan.data_parallel_size
        while self.last is None or index < self.last:
            batch = plan.global_batch(index)
            batch += [ABSENT] * (plan.global_batch_size - len(batch))
            for start in range(self.rank * plan.micro_batch_size, plan.global_batch_size, step):
                yield batch[start : start + plan.micro_batch_size]
            index += 1
