"""Records that gave nothing: why, and the report that lists them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

MEGABYTE = 1_000_000
MAX_DOCUMENT_MB = 64  # default of --max-document-mb
REPORT_BYTES = 100 << 20  # a report's largest size; records skipped after it is full are only counted


@dataclass(frozen=True)
class Unread:
    """Stands in a reader's output for a record that it passed over without holding it.

    Attributes:
        reason: a phrase about the record, such as "it is nested too deeply".
        size: bytes of a line, characters of a list item.
    """

    reason: str
    size: int


@dataclass(frozen=True, slots=True)
class Skipped:
    """A record that gave no document or sample.

    Attributes:
        number: line of JSON Lines or item of a JSON list, from 1.
        reason: a phrase about the record.
        empty: whether the record was empty. Nothing is lost then; every other reason counts as bad.
        records: how many records this stands for: blank lines in a row, or an estimate of those that a broken list
            loses.
    """

    number: int
    reason: str
    empty: bool = False
    records: int = 1


def too_long(longest: int) -> str:
    """The reason for a record of more than `longest` bytes."""
    return f"it is longer than the {longest / MEGABYTE:g} MB that --max-document-mb allows"


def report_lines(file: Path, kind: str, skipped: list[Skipped], behind: int = 0) -> bytes:
    """The report's JSON Lines for skipped records of one file.

    Each line holds `file`, the record's number under the key `kind` (`line`, `item` or `row`), `reason`, and `records`
    if it stands for several. Where a shard begins within the file, `behind_byte` says where its first line does, which
    has the number 1.
    """
    place = {"behind_byte": behind} if behind else {}
    rows = (
        {"file": str(file), **place, kind: s.number, "reason": s.reason} | ({"records": s.records} if s.records > 1 else {})
        for s in skipped
    )
    # A path or reason may hold bytes that are no UTF-8; the report must be written all the same.
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode("utf-8", "backslashreplace")
