"""Several samples in one sequence, by best-fit decreasing. It wastes little and depends on nothing but the lengths.

What is kept takes 16 bytes a sample, since files have tens of millions of them and every process keeps its own.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Groups:
    """Which samples stand in which sequence.

    Attributes:
        order: int64 [samples], their numbers, sequence after sequence.
        edges: int64 [sequences + 1]; those of sequence i are `order[edges[i] : edges[i + 1]]`.
    """

    order: np.ndarray
    edges: np.ndarray

    def __len__(self) -> int:
        return len(self.edges) - 1

    def __getitem__(self, i: int) -> np.ndarray:
        """int64: the samples in sequence `i`, counted from 0."""
        return self.order[self.edges[i] : self.edges[i + 1]]

    def __iter__(self) -> Iterator[np.ndarray]:
        return map(self.__getitem__, range(len(self)))

    @property
    def largest(self) -> int:
        """The most samples that a sequence has."""
        return int(np.diff(self.edges).max())


def one_each(samples: np.ndarray) -> Groups:
    """A sequence for each sample."""
    return Groups(samples, np.arange(len(samples) + 1))


def pack(lengths: np.ndarray, capacity: int) -> Groups:
    """Groups of sample numbers. The lengths in a group add up to at most `capacity`; every sample is in one group.

    The longest sample comes first, and each goes into the fullest group that has room. Groups are returned in the order
    of their lowest sample, and so are the samples of a group. Takes O(n · capacity / 64).

    Args:
        lengths: int [n], tokens, each from 1 to `capacity`.
        capacity: tokens of a sequence.

    Raises:
        ValueError: a length is out of that range.
    """
    if len(lengths) and not 1 <= int(lengths.min()) <= int(lengths.max()) <= capacity:
        raise ValueError(f"sample lengths are {lengths.min()} to {lengths.max()}; they must be 1 to {capacity}.")
    group_of = np.zeros(len(lengths), dtype=np.int64)
    # The groups in which `room` tokens still fit are a stack: `last[room]` is the upper one, `below` has the next.
    last, below = array("q", [-1]) * (capacity + 1), array("q")
    rooms = 0  # bit r is set if there is a group with room r, so that the next larger room is found at once
    for i in np.argsort(-lengths, kind="stable"):
        length = int(lengths[i])
        fitting = rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            group = last[room]
            last[room] = below[group]
            if last[room] < 0:
                rooms ^= 1 << room
        else:
            room, group = capacity, len(below)
            below.append(-1)
        group_of[i] = group
        left = room - length
        if left:
            below[group], last[left] = last[left], group
            rooms |= 1 << left
    return _in_order(group_of, len(below))


def _in_order(group_of: np.ndarray, count: int) -> Groups:
    """Groups by their lowest sample, and the samples of each in order.

    Args:
        group_of: int64 [samples], the group of each.
        count: of groups; none is empty.
    """
    lowest = np.empty(count, dtype=np.int64)
    lowest[group_of[::-1]] = np.arange(len(group_of) - 1, -1, -1)  # of equal indices the last one counts
    place = np.empty(count, dtype=np.int64)
    place[np.argsort(lowest)] = np.arange(count)
    placed = place[group_of]
    sizes = np.bincount(placed, minlength=count)
    return Groups(np.argsort(placed, kind="stable"), np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64))
