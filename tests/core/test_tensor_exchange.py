"""Tensor-parallel ranks gather parts and sum results, through collectives and through each other's memory."""

import pytest

from tests.launching import run_ranks


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_each_rank_gets_what_it_must(ranks):
    run_ranks("tests.core.exchange_worker", count=ranks)
