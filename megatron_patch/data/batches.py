"""A run's data sets, which of their samples make which batch, and the batches themselves.

Which samples make a batch is a pure function of the samples consumed, so a run that goes on reads exactly what follows.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from megatron_patch.config import TrainConfig
from megatron_patch.data.several_files import Blend
from megatron_patch.errors import Refused, UserError, sentence
from megatron_patch.processes import place
from megatron_patch.processes.parents import end_with_parent
from megatron_patch.processes.signals import end_when_told_by, held

# name → tensor [B, S]: int64 `tokens`, `labels` and `loss_mask`; with packing also `position_ids` and `segment_ids`.
# Where `numbered` has added it, also int64 [B] `samples`.
Batch = dict[str, torch.Tensor]

# The keys of a sample that the model and the loss read. Samples of core's GPTDataset have others.
_KEYS = ("tokens", "labels", "loss_mask", "position_ids", "segment_ids")
# The index for "no sample". It fills an incomplete last batch with rows whose loss mask is all zero.
ABSENT = -1


@dataclass(frozen=True)
class BatchPlan:
    """How the samples of a data set are dealt out. Sizes are samples.

    Attributes:
        samples: of the data set.
        shuffle_seed: every pass is a new permutation, made from this seed and the pass's number. None keeps the data
            set's own order: core's GPTDataset has shuffled already.
        passes: passes over the data; None goes on for ever.
        blend: which samples a pass takes, where files have weights; None takes each sample once.
    """

    samples: int
    global_batch_size: int
    micro_batch_size: int
    data_parallel_size: int
    shuffle_seed: int | None = None
    passes: int | None = None
    blend: Blend | None = None

    @property
    def batches_per_pass(self) -> int:
        """Global batches of one pass. The last one may be incomplete; it is trained on all the same."""
        return -(-self.samples // self.global_batch_size)

    def global_batch(self, index: int) -> list[int]:
        """The sample numbers of global batch number `index`, which counts on over all passes."""
        epoch, place = divmod(index, self.batches_per_pass)
        start = place * self.global_batch_size
        stop = min(start + self.global_batch_size, self.samples)
        if self.shuffle_seed is None:
            return list(range(start, stop))
        return _order(self.samples, self.shuffle_seed, epoch, self.blend)[start:stop].tolist()


def plan_of(
    config: TrainConfig, replicas: int, samples: int, *, shuffled: bool, passes: int | None = None, blend: Blend | None = None
) -> BatchPlan:
    """How a run of `replicas` data-parallel ranks deals out `samples`.

    Args:
        shuffled: whether `--seed` orders them; else the data set's own order stays.
        passes, blend: as in `BatchPlan`.
    """
    seed = config.options.seed if shuffled else None
    return BatchPlan(samples, config.global_batch_size, config.micro_batch_size, replicas, seed, passes, blend)


@dataclass(frozen=True)
class ValidationSet:
    """What an evaluation reads of one file, or of the held-out part.

    Attributes:
        name: in the log and in TensorBoard; empty for the only one.
        data: its samples.
        plan: how they are dealt out. With one pass (JSON data) every evaluation begins with the first batch, so their
            losses compare. Without an end (indexed data) an evaluation goes on where the last one stopped, as in
            Megatron.
        batches: global batches of one evaluation.
    """

    name: str
    data: Any
    plan: BatchPlan
    batches: int


@dataclass(frozen=True)
class RunData:
    """A run's data sets, how they are dealt out, and how long the run is.

    Attributes:
        train: training data set. Its items are mappings from the keys of `Batch` to arrays [S].
        plan: how the training samples are dealt out.
        validation: what is evaluated on; empty skips evaluation.
        train_iters: global batches of the whole run.
        eval_every: iterations between two evaluations; 0 evaluates at the end only.
        save_every: iterations between two checkpoints; 0 saves at the end only.
        most_segments: that a sequence of packed samples has, in training or evaluation; None without packing.
    """

    train: Any
    plan: BatchPlan
    validation: tuple[ValidationSet, ...]
    train_iters: int
    eval_every: int
    save_every: int
    most_segments: int | None = None


@functools.lru_cache(maxsize=2)
def _order(samples: int, seed: int, epoch: int, blend: Blend | None) -> torch.Tensor:
    """The sample numbers of one pass, int64 [samples]. Kept, since every batch of a pass asks for them.

    Training and a validation file take turns, hence two.
    """
    order = torch.randperm(samples, generator=torch.Generator().manual_seed(seed + epoch))
    return order if blend is None else blend.samples(epoch)[order]


class MicroBatchSampler(Sampler[list[int]]):
    """The micro-batches of one data-parallel rank, as lists of sample numbers, from global batch `first` up to `last`.

    A global batch is dealt out in runs of `micro_batch_size`, rank after rank. ABSENT fills an incomplete last batch,
    so that every rank takes the same number of steps.
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


class _WithAbsent(Dataset):
    """A data set that answers ABSENT with a row on which nothing is learnt.

    What the operating system refuses is raised as a UserError: of another exception in a process that loads, torch
    makes one that knows no file any more.
    """

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        try:
            sample = self.dataset[0 if index == ABSENT else index]
        except OSError as error:
            raise Refused(sentence(error)) from error
        if index != ABSENT:
            return sample
        sample = dict(sample)
        sample["loss_mask"] = torch.zeros_like(torch.as_tensor(sample["loss_mask"]))
        return sample


def collate(samples: list[Mapping[str, Any]]) -> tuple[list[str], torch.Tensor]:
    """Stack samples of [S] rows: the keys, and one int64 tensor [keys, B, S].

    It is one tensor because handing a tensor over from a worker process costs more than its bytes. So the loss mask, 0
    or 1, is int64 too. `position_ids` come along with packed samples only; elsewhere they count from 0, and the model
    knows that.
    """
    packed = "segment_ids" in samples[0]
    keys = [key for key in _KEYS if key in samples[0] and (packed or key != "position_ids")]
    rows = np.stack([[np.asarray(sample[key]) for sample in samples] for key in keys])
    return keys, torch.from_numpy(rows.astype(np.int64, copy=False))


@dataclass(frozen=True)
class _Checked:
    """`collate`, and a check that every token has a row in the model's embedding.

    On a GPU a token without one would end in an assertion that names nothing, long after the batch was loaded.
    """

    vocab_size: int

    def __call__(self, samples: list[Mapping[str, Any]]) -> tuple[list[str], torch.Tensor]:
        keys, rows = collate(samples)
        for key in ("tokens", "labels"):
            found = rows[keys.index(key)].numpy()
            low, high = int(found.min()), int(found.max())
            if low < 0 or high >= self.vocab_size:
                raise UserError(
                    f"The data holds {key} from {low} to {high}, and the model has {self.vocab_size} rows (0 to "
                    f"{self.vocab_size - 1}); it was tokenized for another vocabulary: prepare it with this model's tokenizer."
                )
        return keys, rows


def micro_batches(
    dataset: Dataset, sampler: MicroBatchSampler, *, vocab_size: int, num_workers: int, pin_memory: bool
) -> Iterator[Batch]:
    """The batches that `sampler` names, in host memory, loaded ahead by `num_workers` processes.

    Raises:
        UserError: while iterating: a batch holds a token outside [0, vocab_size), or the data cannot be read.
    """
    loader = DataLoader(
        _WithAbsent(dataset),
        batch_sampler=sampler,
        collate_fn=_Checked(vocab_size),
        num_workers=num_workers,
        pin_memory=pin_memory,
        persistent_workers=num_workers > 0,
        prefetch_factor=8 if num_workers else None,
        worker_init_fn=partial(_begin_as_loader, os.getpid()) if num_workers else None,
    )
    # SIGTERM and SIGINT may come to every process of a job at once. The rank then finishes its iteration and saves; if
    # its loaders died meanwhile, torch would call that a failure of the rank. So they get these from the rank alone.
    with held():
        batches = iter(loader)
    while True:
        place.move("waiting for a batch")  # for the thread that watches whether this one moves
        item = next(batches, None)
        place.move("working on a batch")
        if item is None:
            return
        keys, rows = item
        yield dict(zip(keys, rows.unbind()))


def numbered(batches: Iterator[Batch], plan: BatchPlan, rank: int, first: int) -> Iterator[Batch]:
    """Training `batches` of a data-parallel rank from global batch `first` on, with their rows' numbers in the run.

    Numbers count all rows of global batches, so a row has the same at any number of ranks and BATCH_SIZE.
    """
    step, rows = plan.micro_batch_size * plan.data_parallel_size, torch.arange(plan.micro_batch_size)
    for micro, batch in enumerate(batches):
        yield {**batch, "samples": first * plan.global_batch_size + micro * step + rank * plan.micro_batch_size + rows}


def _begin_as_loader(rank: int, _: int) -> None:
    """End with the rank, whose process number is `rank`, and when it says so."""
    end_with_parent(rank)
    end_when_told_by(rank)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch on `device`, its loss mask in fp32. From pinned memory the copy runs beside the computation."""
    moved = {key: value.to(device, non_blocking=True) for key, value in batch.items()}
    return {**moved, "loss_mask": moved["loss_mask"].float()}
