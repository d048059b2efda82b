"""Queries from a file of JSON Lines, and answers into another one as they are found, which a later run goes on with.

A line of INPUT_FILE is an object with `query`. A line of OUTPUT_FILE is that object's number in its file, counted
from 0 (`index`), its `query`, the `response`, and why it ended (`finish_reason`: `stop` or `length`). While several
replicas work each writes a file of its own beside OUTPUT_FILE; at the end one file holds all in the order of the
queries.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from megatron_patch.errors import UserError
from megatron_patch.formats.json_files import one_line, shown


@dataclass(frozen=True)
class Query:
    """One line of INPUT_FILE."""

    index: int
    text: str


def read_queries(path: Path) -> list[Query]:
    """Every line's query; empty lines are passed over.

    Raises:
        UserError: a line is no JSON object with a text `query`; the line is named.
    """
    found: list[Query] = []
    with open(path, encoding="utf-8", errors="strict") as file:
        try:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    found.append(Query(len(found), _query(path, number, line)))
        except UnicodeDecodeError as error:
            raise UserError(f"{path} is not UTF-8 ({one_line(error)}); save it as UTF-8.") from None
    if not found:
        raise UserError(f'{path} holds no query; write one JSON object a line, such as {{"query": "Once upon a time"}}.')
    return found


def _query(path: Path, number: int, line: str) -> str:
    where = f"{path}, line {number}"
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f'{where} is no JSON ({one_line(error)}); write one object a line, such as {{"query": "…"}}.') from None
    if not isinstance(record, dict) or not isinstance(record.get("query"), str) or not record["query"]:
        raise UserError(f'{where} is {shown(record)}; it must be an object with a text, such as {{"query": "…"}}.')
    return record["query"]


def part_path(output: Path, replica: int) -> Path:
    """Where a replica writes; the first one writes OUTPUT_FILE itself."""
    return output if replica == 0 else output.with_name(f"{output.name}.part{replica}")


def _parts(output: Path) -> list[Path]:
    found = [output, *output.parent.glob(f"{output.name}.part*")]
    return [path for path in found if path.is_file()]


def answered(output: Path, queries: list[Query]) -> dict[int, dict[str, Any]]:
    """Answers that an earlier run has left in OUTPUT_FILE and the files beside it, by index.

    A last line that was cut off is passed over.

    Raises:
        UserError: OUTPUT_FILE holds something else, or answers to other queries.
    """
    found: dict[int, dict[str, Any]] = {}
    for path in _parts(output):
        lines = path.read_bytes().split(b"\n")
        for number, line in enumerate(lines, start=1):
            if number < len(lines):  # whatever lies behind the last line's end was not finished
                answer = _answer(path, number, line, queries)
                found[answer["index"]] = answer
    return found


def _answer(path: Path, number: int, line: bytes, queries: list[Query]) -> dict[str, Any]:
    try:
        answer = json.loads(line)
        index = answer["index"]
        same = type(index) is int and 0 <= index < len(queries) and queries[index].text == answer["query"]
        complete = isinstance(answer["response"], str)
    except (ValueError, KeyError, TypeError, RecursionError):
        same = complete = False
    if not (same and complete):
        raise UserError(
            f"{path}, line {number} is no answer to INPUT_FILE's queries; write an OUTPUT_FILE that does not exist yet, "
            "or remove this one."
        )
    return answer


class AnswersWriter:
    """Appends answers, each with one write of a whole line."""

    def __init__(self, output: Path, replica: int) -> None:
        self._path = part_path(output, replica)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        _cut_unfinished_line(self._path)
        self._file: TextIO = open(self._path, "a", encoding="utf-8")  # noqa: SIM115  open as long as answers come

    def write(self, query: Query, response: str, finish_reason: str) -> None:
        """Put one answer into the file."""
        line = {"index": query.index, "query": query.text, "response": response, "finish_reason": finish_reason}
        self._file.write(json.dumps(line, ensure_ascii=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Put what was written onto the disk."""
        os.fsync(self._file.fileno())
        self._file.close()


def _cut_unfinished_line(path: Path) -> None:
    if path.is_file():
        content = path.read_bytes()
        with open(path, "r+b") as file:
            file.truncate(content.rfind(b"\n") + 1)


def in_order(output: Path, queries: list[Query]) -> Iterator[str]:
    """The lines of the complete OUTPUT_FILE."""
    found = answered(output, queries)
    for query in queries:
        yield json.dumps(found[query.index], ensure_ascii=False) + "\n"


def put_in_order(output: Path, queries: list[Query]) -> None:
    """Replace OUTPUT_FILE and what stands beside it by one file in the queries' order."""
    beside = [path for path in _parts(output) if path != output]
    whole = output.with_name(f"{output.name}.whole")
    with open(whole, "w", encoding="utf-8") as file:
        file.writelines(in_order(output, queries))
        file.flush()
        os.fsync(file.fileno())
    os.replace(whole, output)
    for path in beside:
        path.unlink()
