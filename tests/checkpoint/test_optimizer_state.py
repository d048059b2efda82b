import pytest
import torch

from megatron_patch.checkpoint.optimizer_state import rectangles
from tests.launching import run_ranks


@pytest.mark.parametrize("first, last", [(0, 35), (0, 7), (3, 5), (3, 7), (3, 9), (3, 14), (7, 29), (12, 35), (34, 35), (6, 6)])
def test_rectangles_are_the_range_in_order(first, last):
    """5 rows of 7; at most the end of a row, whole rows, and the beginning of one."""
    matrix, found = torch.arange(35).view(5, 7), list(rectangles(first, last, 7))
    pieces = [matrix[row : row + rows, column : column + columns].flatten() for row, column, rows, columns in found]
    assert torch.equal(torch.cat([*pieces, matrix[:0].flatten()]), torch.arange(first, last))
    assert len(found) <= 3


def test_core_loads_what_is_saved(tmp_path):
    """Sharded over tensors and replicas; gate and up are apart in the file and together on a rank."""
    run_ranks("tests.checkpoint.zero_worker", tmp_path, count=4)
