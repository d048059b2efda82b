"""A run to whose processes something happens goes on bit for bit from its last checkpoint, and leaves nobody behind."""

from __future__ import annotations

import os

import pytest

from tests.faults.kills import FAULTS
from tests.faults.survival import Chain, chance_of, uninterrupted

SEED = 18
_SELDOM = (
    "SIGINT to the script",
    "SIGINT to every process",
    "Ctrl-C in a waiting script",
    "SIGTERM to every process, many times",
)


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """One run through all faults of this file."""
    reference = uninterrupted(tmp_path_factory.mktemp("uninterrupted"))
    return Chain(tmp_path_factory.mktemp("run"), reference)


@pytest.fixture
def problems(chain):
    """What this test's fault shows, and what that of the test before has cost."""
    yield chain.counts.problems
    chain.counts.problems.clear()


@pytest.mark.parametrize("number", range(len(FAULTS)), ids=[fault.name for fault in FAULTS])
def test_fault(number, chain, problems):
    fault = FAULTS[number]
    if why := fault.absent():
        pytest.skip(why)
    if "SOAK" not in os.environ and (fault.name in _SELDOM or "--async-save" in fault.flags):
        pytest.skip("another fault here or in tests/checkpoint/test_background.py is like it; make soak runs it")
    chain.suffer(fault, chance_of(SEED, number))
    assert not problems, "\n".join(problems)


def test_and_the_end_is_that_of_an_uninterrupted_run(chain, problems):
    chain.complete()
    assert not problems, "\n".join(problems)
