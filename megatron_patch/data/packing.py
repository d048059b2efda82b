"""Several samples in one sequence, by best-fit decreasing. It wastes little and depends on nothing but the lengths."""

from __future__ import annotations

import numpy as np


def pack(lengths: np.ndarray, capacity: int) -> list[list[int]]:
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
    groups: list[list[int]] = []
    with_room: list[list[int]] = [[] for _ in range(capacity + 1)]  # by the tokens that still fit
    rooms = 0  # bit r is set if with_room[r] is not empty, so that the next larger room is found at once
    for i in np.argsort(-lengths, kind="stable"):
        length = int(lengths[i])
        fitting = rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            group = with_room[room].pop()
            if not with_room[room]:
                rooms ^= 1 << room
        else:
            room, group = capacity, len(groups)
            groups.append([])
        groups[group].append(int(i))
        left = room - length
        if left:
            with_room[left].append(group)
            rooms |= 1 << left
    return sorted(sorted(group) for group in groups)
