"""From a data set's samples to device batches: collation, worker processes, pinned memory."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from megatron_patch.data.samplers import ABSENT, MicroBatchSampler
from megatron_patch.errors import UserError

Batch = dict[str, torch.Tensor]

# What the model and the loss read; a data set's other keys stay behind.
_KEYS = ("tokens", "labels", "loss_mask", "position_ids", "segment_ids")


class _WithAbsent(Dataset):
    """A data set that answers ABSENT with a row on which nothing is learnt."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        if index != ABSENT:
            return self.dataset[index]
        sample = dict(self.dataset[0])
        sample["loss_mask"] = torch.zeros_like(torch.as_tensor(sample["loss_mask"]))
        return sample


def collate(samples: list[Mapping[str, Any]]) -> tuple[list[str], torch.Tensor]:
    """Samples of [S] rows to one int64 tensor [keys, B, S], and the keys; a loss mask is 0 or 1.

    One tensor, since each that a worker process hands over costs more than its bytes. Positions are handed on only with
    packed samples; elsewhere they count from 0 and the model knows that.
    """
    packed = "segment_ids" in samples[0]
    keys = [key for key in _KEYS if key in samples[0] and (packed or key != "position_ids")]
    rows = np.stack([[np.asarray(sample[key]) for sample in samples] for key in keys])
    return keys, torch.from_numpy(rows.astype(np.int64, copy=False))


@dataclass(frozen=True)
class _Checked:
    """`collate`, and a check that no token lies outside the model's embedding.

    On a GPU such a token would end in an assertion that names nothing, long after the batch was loaded.
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
    """An iterator over the host batches that `sampler` names, loaded ahead by `num_workers` processes.

    Raises:
        UserError: while iterating, for a batch with a token outside [0, vocab_size).
    """
    loader = DataLoader(
        _WithAbsent(dataset),
        batch_sampler=sampler,
        collate_fn=_Checked(vocab_size),
        num_workers=num_workers,
        pin_memory=pin_memory,
        persistent_workers=num_workers > 0,
        prefetch_factor=8 if num_workers else None,
        worker_init_fn=_leave_the_group if num_workers else None,
    )
    for keys, rows in loader:
        yield dict(zip(keys, rows.unbind()))


def _leave_the_group(_: int) -> None:
    """torchrun hands SIGTERM on to a rank's whole process group. The rank finishes its iteration and saves, and torch takes a
    loader that dies meanwhile for a failure of the rank; loaders end with it, or a few seconds after it was killed."""
    os.setpgrp()


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch on `device`, its loss mask in fp32; from pinned memory the copy runs beside the computation."""
    moved = {key: value.to(device, non_blocking=True) for key, value in batch.items()}
    return {**moved, "loss_mask": moved["loss_mask"].float()}
