"""From data files to documents in the order of the files: chunks of records, each record's text, what was
skipped and why.

The main process reads chunks and hands them on; `texts_of` parses and cleans one anywhere. A chunk's place
(file, record number, byte offset) is enough to go on after it.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_patch.errors import UserError
from megatron_patch.records.json_records import (
    DAMAGED,
    MAX_DOCUMENT_MB,
    MEGABYTE,
    BrokenListError,
    Unread,
    begins_list,
    list_items,
    open_stream,
    require_unicode,
)
from megatron_patch.records.lines import Blank, read_lines

CHUNK_BYTES = 1 << 20
REPORT_BYTES = 100 << 20  # of a report on skipped records; those behind it are counted only
_CHUNK_ITEMS = 4096


@dataclass(frozen=True, slots=True)
class Skipped:
    """A record that gave no document. `number`: line of JSON Lines or item of a JSON list, from 1."""

    number: int
    reason: str
    empty: bool = False  # an empty document loses nothing; every other reason counts as bad
    records: int = 1  # blank lines in a row; or all that a list that breaks off loses, then an estimate


@dataclass(frozen=True)
class Place:
    """Where to go on reading: `file` of the list of files, after `records` of its records and `offset` bytes
    (lines only).
    """

    file: int = 0
    records: int = 0
    offset: int = 0


START = Place()


@dataclass(frozen=True)
class Chunk:
    """Records one after the other, from number `first`; lines as bytes, list items parsed. `after`: the place
    behind them and behind what was passed over.
    """

    file: int
    first: int
    records: list[Any]
    size: int  # bytes of lines, about as many of list items
    after: Place
    kind: str = "line"  # or "item", what its record numbers count
    lost: Skipped | None = None  # passed over behind them: a record too long to hold, or the rest of a list that breaks off
    blank: int = 0  # blank lines from `first` on, instead of records


def read_chunks(files: Sequence[Path], start: Place = START, longest: int = MAX_DOCUMENT_MB * MEGABYTE) -> Iterator[Chunk]:
    """Chunks of about CHUNK_BYTES in order, from `start` on; records of more than `longest` bytes are not held. Raises
    UserError for a damaged archive.
    """
    for index in range(start.file, len(files)):
        begin = start if index == start.file else Place(index)
        try:
            with open_stream(files[index]) as stream:
                chunks = _list_chunks if begins_list(stream) else _line_chunks
                yield from chunks(stream, begin, longest)
        except DAMAGED as error:
            raise UserError(f"{files[index]} cannot be read to its end ({error}); fetch or pack it again.") from error


def _line_chunks(stream: io.BufferedReader, begin: Place, longest: int) -> Iterator[Chunk]:
    _advance(stream, begin.offset)
    number, offset = begin.records, begin.offset
    for lines, size in read_lines(stream, CHUNK_BYTES, longest):
        offset += size
        first, records, lost, blank = number + 1, [], None, 0
        if isinstance(lines, Unread):
            lost = Skipped(first, lines.reason)
        elif isinstance(lines, Blank):
            blank = lines.count
        else:
            records = lines
        number += len(records) + blank + (lost is not None)
        yield Chunk(begin.file, first, records, size, Place(begin.file, number, offset), lost=lost, blank=blank)


def _advance(stream: io.BufferedReader, offset: int) -> None:
    """Pass over `offset` bytes; at once where the file can seek."""
    if offset and isinstance(stream.raw, io.FileIO):
        stream.seek(offset, io.SEEK_CUR)
        return
    while offset:
        data = stream.read(min(offset, CHUNK_BYTES))
        if not data:
            raise EOFError("it is shorter than when the interrupted run read it")
        offset -= len(data)


def _list_chunks(stream: io.BufferedReader, begin: Place, longest: int) -> Iterator[Chunk]:
    records: list[Any] = []
    number, size, total, lost = 0, 0, 0, None
    try:
        for number, value, characters in list_items(stream, longest):
            total += characters
            if number <= begin.records:
                continue
            size += characters
            unread = Skipped(number, value.reason) if isinstance(value, Unread) else None
            if unread is None:
                records.append(value)
            if unread or size >= CHUNK_BYTES or len(records) >= _CHUNK_ITEMS:
                first = number - len(records) + (unread is None)
                yield Chunk(begin.file, first, records, size, Place(begin.file, number), "item", unread)
                records, size = [], 0
    except BrokenListError as error:
        mean = max(1, total // number) if number else 1000
        lost = Skipped(error.number, f"{error.reason}; the rest of the list is lost", records=max(1, error.lost // mean))
    yield Chunk(begin.file, number - len(records) + 1, records, size, Place(begin.file + 1), "item", lost)


def texts_of(
    chunk: Chunk, keys: Sequence[str], clean: Callable[[str], str] | None
) -> tuple[list[tuple[int, str]], list[Skipped]]:
    """(record number, text) of the records that have one, cleaned; and those that have none. `keys`: the
    first that is there.
    """
    texts, skipped = [], []
    if chunk.blank:
        skipped.append(Skipped(chunk.first, "it is empty", empty=True, records=chunk.blank))
    for number, record in enumerate(chunk.records, start=chunk.first):
        try:
            text = _text_of(record, keys)
            text = clean(text) if clean else text
        except (UserError, RecursionError) as error:
            skipped.append(Skipped(number, str(error)))
            continue
        if text:
            texts.append((number, text))
        else:
            skipped.append(Skipped(number, "it is empty", empty=True))
    return texts, skipped + ([chunk.lost] if chunk.lost else [])


def _text_of(record: Any, keys: Sequence[str]) -> str:
    """The text; empty for a blank line. UserError, one phrase, where there is none or one that is not
    Unicode.
    """
    if isinstance(record, bytes):
        record = record.strip()
        if not record:
            return ""
        try:
            record = json.loads(record)
        except UnicodeDecodeError:
            raise UserError("it is not UTF-8") from None
        except ValueError as error:
            raise UserError(f"it is no JSON: {error}") from None
    if not isinstance(record, dict):
        raise UserError(f"it is a {type(record).__name__}, not an object")
    for key in keys:
        if key in record:
            text = record[key]
            if not isinstance(text, str):
                raise UserError(f"its {key!r} is {type(text).__name__}, not a text")
            return require_unicode(text)
    raise UserError(f"it lacks the key {' or '.join(map(repr, keys))}")


def report_lines(file: Path, kind: str, skipped: list[Skipped]) -> bytes:
    """JSON Lines of file, number (`line` or `item`) and reason, and `records` where there is more than one."""
    rows = (
        {"file": str(file), kind: s.number, "reason": s.reason} | ({"records": s.records} if s.records > 1 else {})
        for s in skipped
    )
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode("utf-8", "backslashreplace")
