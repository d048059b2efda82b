"""Who holds a run up: from what the ranks tell, on a clock of the test's own."""

from __future__ import annotations

from dataclasses import replace

from megatron_patch.processes.standstill import Observer, Report, report_of, verdict

LIMIT = 60.0


def reports(places, beats, iteration=7):
    return {
        rank: Report(beat, place, iteration, f"place {place}", 100 + rank, "node-0")
        for rank, (place, beat) in enumerate(zip(places, beats, strict=True))
    }


def watched(places, beats_stop=(), seconds=90, gap=None, iteration=7):
    """(when, who) an observer names first of ranks that stand at `places` for ever; of some the heartbeat stops too."""
    observer = Observer(LIMIT, longest_look=20)
    for now in range(0, seconds, 5):
        if gap and gap[0] <= now < gap[1]:
            continue
        beats = [1 if rank in beats_stop else now for rank in range(len(places))]
        if guilty := observer.look(reports(places, beats, iteration), 1000.0 + now):
            return now, guilty
    return None


def test_the_one_that_is_behind_is_waited_for():
    assert watched([41, 40, 41]) == (65, [1])


def test_a_silent_one_is_named_even_if_it_is_ahead():
    assert watched([41, 42, 41], beats_stop=[1]) == (65, [1])


def test_where_all_stand_at_one_place_all_are_named():
    assert watched([41, 41]) == (65, [0, 1])


def test_before_the_first_iteration_only_silence_counts():
    assert watched([4, 3], iteration=0) is None
    assert watched([4, 3], beats_stop=[0], iteration=0) == (65, [0])


def test_a_job_that_was_stopped_as_a_whole_and_goes_on_is_left_alone():
    assert watched([41, 40], seconds=150, gap=(30, 120)) is None


def test_one_rank_that_moves_is_no_standstill():
    observer = Observer(LIMIT, longest_look=20)
    assert not any(observer.look(reports([now, 3], [now, now]), now) for now in range(0, 300, 5))


def test_who_comes_further_at_one_place_does_not_stand_still():
    """A save or a flush that takes longer than the limit. As soon as it does not go on, it is what it was."""
    observer, found = Observer(LIMIT, longest_look=20), None
    for now in range(0, 600, 5):
        told = {rank: replace(report, done=min(now, 300) * rank) for rank, report in reports([41, 41], [now, now]).items()}
        found = found or ((now, guilty) if (guilty := observer.look(told, 1000.0 + now)) else None)
    assert found == (365, [0, 1])


def test_sentences():
    told = {rank: report_of(report.as_text()) for rank, report in reports([41, 40, 41], [9, 9, 9]).items()}
    assert verdict(told, [1], [], 10.0) == [
        "rank 1 (process 101 on node-0) has stood still for 10 min at iteration 7, place 40.",
        "rank 0, 2 waits at iteration 7, place 41.",
    ]
    (silent, _) = verdict(told, [1], [1], 0.5)
    assert silent == (
        "rank 1 (process 101 on node-0) has given no sign of life for 0.5 min: it is stopped, it waits inside a library or "
        "for a file system, or its machine cannot be reached; it was at iteration 7, place 40."
    )
