import numpy as np
import pytest

from megatron_patch.data.packing import pack


def test_every_sample_is_in_one_group_and_no_group_overflows():
    lengths = np.random.default_rng(0).integers(1, 2049, 5000)
    groups = pack(lengths, 2048)
    assert sorted(i for group in groups for i in group) == list(range(5000))
    assert max(int(lengths[group].sum()) for group in groups) <= 2048
    assert len(groups) <= 1.02 * -(-lengths.sum() // 2048), "best fit wastes little on many samples"


def test_small_cases_by_hand():
    assert pack(np.array([6, 5, 4, 3, 2]), 10) == [[0, 2], [1, 3, 4]]
    assert pack(np.array([10, 10]), 10) == [[0], [1]]
    assert pack(np.array([], dtype=np.int64), 10) == []
    with pytest.raises(ValueError, match="lengths are 3 to 11; they must be 1 to 10"):
        pack(np.array([3, 11]), 10)
