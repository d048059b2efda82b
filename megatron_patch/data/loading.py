"""From a data set's samples to device batches: collation, worker processes, pinned memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from megatron_patch.data.samplers import ABSENT, MicroBatchSampler

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


def collate(samples: list[Mapping[str, Any]]) -> Batch:
    """Samples of [S] rows to a batch of [B, S]: token ids int64, loss mask fp32.

    Positions are handed on only with packed samples; elsewhere they count from 0 and the model knows that.
    """
    packed = "segment_ids" in samples[0]
    keys = [key for key in _KEYS if key in samples[0] and (packed or key != "position_ids")]
    return {key: torch.stack([torch.as_tensor(np.asarray(sample[key])) for sample in samples]) for key in keys}


@dataclass(frozen=True)
class _Checked:
    """`collate`, after which no token can index outside the model's embedding: on a GPU that would end in an assertion

    that names nothing, long after the batch was loaded."""

    vocab_size: int

    def __call__(self, samples: list[Mapping[str, Any]]) -> Batch:
        batch = collate(samples)
        for key in ("tokens", "labels"):
            low, high = int(batch[key].min()), int(batch[key].max())
            if low < 0 or high >= self.vocab_size:
                raise ValueError(
                    f"The data holds {key} from {low} to {high}, and the model has {self.vocab_size} rows (0 to "
                    f"{self.vocab_size - 1}); it was tokenized for another vocabulary: prepare it with this model's tokenizer."
                )
        return batch


def micro_batches(
    dataset: Dataset, sampler: MicroBatchSampler, *, vocab_size: int, num_workers: int, pin_memory: bool
) -> Iterator[Batch]:
    """An iterator over the host batches that `sampler` names, loaded ahead by `num_workers` processes.

    Raises:
        ValueError: while iterating, for a batch with a token outside [0, vocab_size).
    """
    loader = DataLoader(
        _WithAbsent(dataset),
        batch_sampler=sampler,
        collate_fn=_Checked(vocab_size),
        num_workers=num_workers,
        pin_memory=pin_memory,
        persistent_workers=num_workers > 0,
        prefetch_factor=8 if num_workers else None,
    )
    return iter(loader)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch on `device`; from pinned memory the copy runs beside the computation."""
    return {key: value.to(device, non_blocking=True) for key, value in batch.items()}
