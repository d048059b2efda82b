import tracemalloc

import numpy as np
import pytest

from megatron_patch.data.packing import one_each, pack


def packed(lengths, capacity):
    return [group.tolist() for group in pack(lengths, capacity)]


def test_every_sample_is_in_one_group_and_no_group_overflows():
    lengths = np.random.default_rng(0).integers(1, 2049, 5000)
    groups = packed(lengths, 2048)
    assert sorted(i for group in groups for i in group) == list(range(5000))
    assert max(int(lengths[group].sum()) for group in groups) <= 2048
    assert len(groups) <= 1.02 * -(-lengths.sum() // 2048), "best fit wastes little on many samples"


def test_small_cases_by_hand():
    assert packed(np.array([6, 5, 4, 3, 2]), 10) == [[0, 2], [1, 3, 4]]
    assert packed(np.array([10, 10]), 10) == [[0], [1]]
    assert packed(np.array([], dtype=np.int64), 10) == []
    with pytest.raises(ValueError, match="lengths are 3 to 11; they must be 1 to 10"):
        pack(np.array([3, 11]), 10)


def by_lists(lengths, capacity):
    """By the definition: of the groups that have room the fullest, of equally full ones the last that became so."""
    groups, rooms, moments = [], [], []
    for moment, i in enumerate(np.argsort(-lengths, kind="stable").tolist()):
        fitting = [place for place, room in enumerate(rooms) if room >= lengths[i]]
        if not fitting:
            fitting = [len(groups)]
            groups.append([])
            rooms.append(capacity)
            moments.append(moment)
        place = min(fitting, key=lambda one: (rooms[one], -moments[one]))
        groups[place].append(i)
        rooms[place], moments[place] = rooms[place] - int(lengths[i]), moment
    return sorted(map(sorted, groups))


def test_groups_are_those_of_the_definition():
    draw = np.random.default_rng(0)
    for capacity in range(1, 40):
        lengths = draw.integers(1, capacity + 1, int(draw.integers(0, 60)))
        assert packed(lengths, capacity) == by_lists(lengths, capacity)


@pytest.mark.parametrize("make", [one_each, lambda lengths: pack(lengths, 2048)])
def test_sixteen_bytes_a_sample_are_kept(make):
    lengths = np.random.default_rng(0).integers(1, 2049, 20_000)
    tracemalloc.start()
    groups = make(lengths)
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(groups.order) == 20_000 and kept <= 17 * 20_000 and peak <= 65 * 20_000
