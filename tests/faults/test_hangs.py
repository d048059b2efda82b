"""Of two processes one stands still: the run ends with status 1, says which one, and goes on bit for bit afterwards."""

from __future__ import annotations

import re

import pytest

from tests.faults.hangs import FAULTS
from tests.faults.survival import Chain, chance_of, uninterrupted

SEED = 7


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """One run of two processes through all faults of this file."""
    reference = uninterrupted(tmp_path_factory.mktemp("uninterrupted"), processes=2, iterations=36)
    return Chain(tmp_path_factory.mktemp("run"), reference, processes=2)


@pytest.mark.parametrize("number", range(len(FAULTS)), ids=[fault.name for fault in FAULTS])
def test_a_rank_that_stands_still_is_named(number, chain):
    chain.suffer(FAULTS[number], chance_of(SEED, number))
    assert not chain.counts.problems, "\n".join(chain.counts.problems)
    said = chain.last_said
    assert "the first of this node to end early" not in said
    other = 1 if "SIGSTOP of the first" in FAULTS[number].name else 0
    assert re.search(rf"rank {other} waits at iteration \d+, ", said) and f"rank {other}'s stacks:" in said
    assert 'File "' in said.split(f"rank {other}'s stacks:")[1], "Python's stack of the one that waits"
    logged = [path.read_text() for path in sorted(chain.folder.glob("log/*/train.log"))][-1]
    assert f"rank {other}'s stacks:" in logged
    if FAULTS[number].name.startswith("a loader"):
        assert "rank 1's stacks:" in said and "waiting for a batch" in said


def test_and_the_end_is_that_of_an_uninterrupted_run(chain):
    chain.complete()
    assert not chain.counts.problems, "\n".join(chain.counts.problems)
