"""When a failed run is started again: the same on all nodes."""

from __future__ import annotations

import pytest

from megatron_patch.processes.restarts import Failure, Restarts, failure_of
from tests.processes.test_meeting import Shared


def refusals(*iterations, codes=(1, None)):
    restarts = Restarts(0, 1)
    return [restarts.refusal(failure_of(one, list(codes)), attempt, None) for attempt, one in enumerate(iterations)]


def test_a_failure_somewhere_else_is_tried_again():
    assert refusals(3, 5, 4) == [None, None, None]


def test_the_same_iteration_twice_is_not():
    first, second = refusals(3, 3)
    assert first is None and second.startswith("the run has failed twice behind iteration 3, so it is not started again")


def test_what_the_user_can_mend_is_not():
    assert refusals(0, codes=(None, 2)) == [""]


@pytest.mark.parametrize(
    "other, wanted",
    [
        (Failure(9, False), None),
        (Failure(9, True), ""),
        (None, "node 1 has told nothing of its end, so the run is not started again."),
    ],
)
def test_nodes_decide_together(other, wanted):
    store, here = Shared(), Restarts(0, 2)
    if other is not None:
        told = Restarts(1, 2)
        told.refusal(other, 1, store, sleep=lambda _: None)
    assert here.refusal(Failure(8, False), 1, store, sleep=lambda _: None) == wanted
    assert here.elsewhere(1, store) and not here.elsewhere(2, store)
