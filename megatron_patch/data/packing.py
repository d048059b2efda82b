"""Several samples to a sequence: best-fit decreasing, which wastes little and depends on nothing but the
lengths.
"""

from __future__ import annotations

import numpy as np


def pack(lengths: np.ndarray, capacity: int) -> list[list[int]]:
    """Groups of sample numbers whose lengths add up to at most `capacity` each; every sample is in one group.

    `lengths` [n], each from 1 to `capacity`. Longest first, each into the fullest group that has room. The
    groups come in the order of their lowest sample, and so do the samples of a group. O(n · capacity / 64).
    """
    if len(lengths) and not 1 <= int(lengths.min()) <= int(lengths.max()) <= capacity:
        raise ValueError(f"sample lengths are {lengths.min()} to {lengths.max()}; they must be 1 to {capacity}.")
    groups: list[list[int]] = []
    with_room: list[list[int]] = [[] for _ in range(capacity + 1)]  # by remaining room
    rooms = 0  # bit r is set where with_room[r] holds a group
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
