"""The file of answers: what counts as answered, what is refused, and that nothing else in its folder is touched."""

from __future__ import annotations

import json

import pytest

from megatron_patch.errors import UserError
from megatron_patch.generate.answers_file import AnswersWriter, Query, answered, put_in_order, read_queries

QUERIES = [Query(number, f"语言 {number}") for number in range(5)]


def write(output, replica, numbers, run="run"):
    writer = AnswersWriter(output, replica, run)
    for number in numbers:
        writer.write(QUERIES[number], f"answer {number}", "stop")
    writer.close()


def test_files_of_replicas_become_one_beside_a_user_s_own(tmp_path):
    """The name has characters that stand for others in a pattern; two files have names that are like a replica's."""
    output = tmp_path / "answers[1]*.jsonl"
    own = [tmp_path / "answers[1]*.jsonl.partial", tmp_path / "answers1.jsonl.part1"]
    for path in own:
        path.write_text("a user's own\n")
    write(output, 0, [4, 0])
    write(output, 1, [3])
    write(output, 10, [1, 2])
    assert sorted(answered(output, QUERIES, "run")) == [0, 1, 2, 3, 4]
    put_in_order(output, QUERIES, "run")
    assert [json.loads(line)["response"] for line in output.read_text().splitlines()] == [f"answer {n}" for n in range(5)]
    assert sorted(tmp_path.iterdir()) == sorted([output, *own])


def test_answers_of_another_run_are_refused(tmp_path):
    """Another checkpoint or temperature and the same OUTPUT_FILE: its old answers would stand for the new ones."""
    write(tmp_path / "out", 0, range(5), run="before")
    with pytest.raises(UserError, match="line 1 was answered from another checkpoint or with other settings"):
        answered(tmp_path / "out", QUERIES, "run")


def test_a_missing_answer_is_a_sentence(tmp_path):
    write(tmp_path / "out", 0, [0, 1])
    with pytest.raises(UserError, match="3 of 5 answers are not beside"):
        put_in_order(tmp_path / "out", QUERIES, "run")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("size", [1, 1 << 20, (1 << 20) + 1, 3 << 20])
def test_a_line_that_was_cut_off_is_written_anew(tmp_path, size):
    output = tmp_path / "out"
    write(output, 0, [2])
    whole = output.read_bytes()
    output.write_bytes(whole + b"x" * size)
    assert list(answered(output, QUERIES, "run")) == [2]
    write(output, 0, [])
    assert output.read_bytes() == whole
    output.write_bytes(b"x" * size)
    write(output, 0, [])
    assert output.read_bytes() == b""


def test_queries_as_windows_saves_them_and_half_a_character(tmp_path):
    """A byte-order mark at the beginning is no part of the first line."""
    path = tmp_path / "in.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"query": "x"}\r\n\r\n{"query": "y"}\r\n')
    assert read_queries(path) == [Query(0, "x"), Query(1, "y")]
    path.write_text('{"query": "x"}\n{"query": "\\ud83d"}\n')
    with pytest.raises(UserError, match="line 2 cannot be used: it holds half of a surrogate pair"):
        read_queries(path)
