"""When a failed run is started again: the same on all nodes."""

from __future__ import annotations

import pytest

from megatron_patch.processes.restarts import Failure, Restarts, failure_of
from tests.processes.test_meeting import Shared


def refusals(*iterations, codes=(1, None), final=None):
    restarts = Restarts(0, 1)
    failures = [failure_of(one, list(codes), final) for one in iterations]
    return [restarts.refusal(failure, attempt, None) for attempt, failure in enumerate(failures)]


def test_a_failure_somewhere_else_is_tried_again():
    assert refusals(3, 5, 4) == [None, None, None]


def test_the_same_iteration_twice_is_not():
    first, second = refusals(3, 3)
    assert first is None and second.startswith("the run has failed twice behind iteration 3, so it is not started again")


def test_a_failure_before_the_first_iteration_is_one_of_its_own():
    """Memory of the GPU that the process before has not let go of yet says nothing about iteration 100."""
    *tried, last = refusals(100, 0, 100)
    assert tried == [None, None] and "failed twice behind iteration 100" in last
    *tried, last = refusals(100, 0, 0)
    assert tried == [None, None] and "failed twice before an iteration was done" in last
    assert refusals(0, 5, 0, 7) == [None] * 4


def test_where_iterations_are_not_known_only_max_restarts_counts():
    assert refusals(None, None, None) == [None] * 3


def test_what_the_user_can_mend_is_not():
    assert refusals(0, codes=(None, 2)) == [""]


def test_a_rank_knows_better_than_its_status_whether_a_restart_is_vain():
    assert refusals(50_100, codes=(1, 1), final=True) == [""], "a run that cannot go on ends with 1, as a crash does"
    assert refusals(7, codes=(2, None), final=False) == [None], "a disk that fails ends with 2, as a usage error does"


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
