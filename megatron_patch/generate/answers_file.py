"""Queries from a file of JSON Lines, and answers into another one as they are found, which a later run goes on with.

A line of INPUT_FILE is an object with `query`. A line of OUTPUT_FILE is that object's number in its file, counted
from 0 (`index`), its `query`, the `response`, why it ended (`finish_reason`: `stop` or `length`), and a mark of the
checkpoint and settings that it was found with (`run`): answers of another run are no answers to this one. While several
replicas work each writes a file of its own beside OUTPUT_FILE; at the end one file holds all in the order of the
queries. Answers are not held: of each one the place in its file is known.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from megatron_patch.errors import UserError, naming
from megatron_patch.formats.json_files import one_line, shown
from megatron_patch.records.texts import require_unicode

_BLOCK = 1 << 20  # bytes of a file's end that are looked at together


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
    with open(path, encoding="utf-8-sig", errors="strict") as file:
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
    try:
        return require_unicode(record["query"])
    except UserError as error:
        raise UserError(f"{where} cannot be used: {error}; mend the line.") from None


def part_path(output: Path, replica: int) -> Path:
    """Where a replica writes; the first one writes OUTPUT_FILE itself."""
    return output if replica == 0 else output.with_name(f"{output.name}.part{replica}")


def _parts(output: Path) -> list[Path]:
    """OUTPUT_FILE and the replicas' files beside it, as far as they exist."""
    if not output.parent.is_dir():
        return []
    part = re.compile(re.escape(output.name) + r"(\.part[1-9][0-9]*)?")
    return sorted(path for path in output.parent.iterdir() if part.fullmatch(path.name) and path.is_file())


@dataclass(frozen=True)
class Place:
    """Where an answer's line begins: byte `offset` of `path`."""

    path: Path
    offset: int


def answered(output: Path, queries: list[Query], run: str) -> dict[int, Place]:
    """Answers that an earlier run has left in OUTPUT_FILE and the files beside it, by index.

    A last line that was cut off is passed over.

    Raises:
        UserError: OUTPUT_FILE holds something else, answers to other queries, or those of a run that is not `run`.
    """
    found: dict[int, Place] = {}
    for path in _parts(output):
        offset = 0
        with open(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                if line.endswith(b"\n"):  # whatever lies behind the last line's end was not finished
                    found[_index(path, number, line, queries, run)] = Place(path, offset)
                offset += len(line)
    return found


def _index(path: Path, number: int, line: bytes, queries: list[Query], run: str) -> int:
    """Which query a line answers."""
    instead = "write an OUTPUT_FILE that does not exist yet, or remove this one."
    try:
        answer = json.loads(line)
        index = answer["index"]
        same = type(index) is int and 0 <= index < len(queries) and queries[index].text == answer["query"]
        complete = isinstance(answer["response"], str)
    except (ValueError, KeyError, TypeError, RecursionError):
        same = complete = False
    if not (same and complete):
        raise UserError(f"{path}, line {number} is no answer to INPUT_FILE's queries; {instead}")
    if answer.get("run") != run:
        raise UserError(f"{path}, line {number} was answered from another checkpoint or with other settings; {instead}")
    return index


class AnswersWriter:
    """Appends answers, each with one write of a whole line."""

    def __init__(self, output: Path, replica: int, run: str) -> None:
        self._path, self._run = part_path(output, replica), run
        self._path.parent.mkdir(parents=True, exist_ok=True)
        _cut_unfinished_line(self._path)
        self._file: TextIO = open(self._path, "a", encoding="utf-8")  # noqa: SIM115  open as long as answers come

    def write(self, query: Query, response: str, finish_reason: str) -> None:
        """Put one answer into the file."""
        line = {"index": query.index, "query": query.text, "response": response, "finish_reason": finish_reason, "run": self._run}
        with naming(self._path):
            self._file.write(json.dumps(line, ensure_ascii=False) + "\n")
            self._file.flush()

    def close(self) -> None:
        """Put what was written onto the disk."""
        with naming(self._path):
            os.fsync(self._file.fileno())
            self._file.close()


def _cut_unfinished_line(path: Path) -> None:
    if not path.is_file():
        return
    with open(path, "r+b") as file:
        end = file.seek(0, os.SEEK_END)
        while end:
            begin = max(0, end - _BLOCK)
            file.seek(begin)
            place = file.read(end - begin).rfind(b"\n")
            if place >= 0:
                end = begin + place + 1
                break
            end = begin
        file.truncate(end)


def _lines(places: list[Place]) -> Iterator[bytes]:
    """The lines at these places."""
    with ExitStack() as stack:
        files = {path: stack.enter_context(open(path, "rb")) for path in {place.path for place in places}}
        for place in places:
            files[place.path].seek(place.offset)
            yield files[place.path].readline()


def put_in_order(output: Path, queries: list[Query], run: str) -> None:
    """Replace OUTPUT_FILE and what stands beside it by one file in the queries' order.

    Raises:
        UserError: an answer is missing, as where nodes write to folders of their own.
    """
    found = answered(output, queries, run)
    if missing := len(queries) - len(found):
        raise UserError(
            f"{missing} of {len(queries)} answers are not beside {output}; where processes run on several nodes, OUTPUT_FILE "
            "must lie in a folder that all of them share: write such a one."
        )
    beside = [path for path in _parts(output) if path != output]
    whole = output.with_name(f"{output.name}.whole")
    with naming(whole), open(whole, "wb") as file:
        file.writelines(_lines([found[query.index] for query in queries]))
        file.flush()
        os.fsync(file.fileno())
    os.replace(whole, output)
    for path in beside:
        path.unlink()
