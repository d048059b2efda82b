"""JSON and Parquet files as chunks of records, in the order of the files, in memory of a few MiB whatever their size.

A file whose name ends in .parquet is Parquet. Any other is JSON Lines or a JSON list, plain, gzip or Zstandard. Its
first character tells which: `[` begins a list, anything else lines. The name does not tell, since `.json` is in use for
both. A record longer than allowed is passed over without being held.

A chunk's place (file, record number, byte offset) is enough to go on reading after it. Chunks hold lines as bytes, so
that another process can parse them.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from megatron_patch.errors import UserError
from megatron_patch.records import parquet
from megatron_patch.records.archives import open_archive
from megatron_patch.records.json_list import BrokenListError, list_items
from megatron_patch.records.lines_later import LinesLater, find_lines
from megatron_patch.records.skipped import MAX_DOCUMENT_MB, MEGABYTE, Skipped, Unread, too_long

DAMAGED = (EOFError, OSError, zlib.error)  # what reading a damaged archive raises
CHUNK_BYTES = 1 << 20
PEEK = 1 << 20  # bytes of a file's beginning that can be looked at without being taken
_CHUNK_ITEMS = 4096  # most items of a list in a chunk: short ones take far more memory as objects than as text
_MOST_LINES = 1 << 16  # most lines in a chunk, for the same reason


@dataclass(frozen=True)
class Place:
    """Where to go on reading.

    Attributes:
        file: index into the list of files.
        records: how many records of that file are done.
        offset: how many uncompressed bytes of that file are done; 0 in a list, whose items must be parsed to be
            counted.
    """

    file: int = 0
    records: int = 0
    offset: int = 0


START = Place()


@dataclass(frozen=True)
class Chunk:
    """Successive records of one file.

    Attributes:
        file: index into the list of files.
        first: number of the first record, from 1.
        records: lines as bytes, without their ends, or where they are to be read; items of a list and rows of a table
            as objects.
        size: bytes of the lines; characters of items and rows, which is about their bytes.
        after: the place behind the records and behind what was passed over.
        kind: what a record's number counts: `line`, `item` or `row`.
        lost: what was passed over behind the records: one that is too long, or the rest of a list that breaks off.
        blank: number of blank lines from `first` on. A chunk with blank lines has no records.
    """

    file: int
    first: int
    records: list[Any] | LinesLater
    size: int
    after: Place
    kind: str = "line"
    lost: Skipped | None = None
    blank: int = 0


def open_stream(path: Path) -> io.BufferedReader:
    """A file's uncompressed bytes, without a byte-order mark.

    Reading a damaged archive raises one of DAMAGED, also here, where the first bytes are looked at.
    """
    packed = path.name.endswith((".gz", ".zst"))
    raw = open_archive(path) if packed else open(path, "rb", buffering=0)  # noqa: SIM115  the reader closes it
    stream: io.BufferedReader = io.BufferedReader(raw, PEEK)
    if stream.peek(3)[:3] == b"\xef\xbb\xbf":
        stream.read(3)
    return stream


def begins_list(stream: io.BufferedReader) -> bool:
    """Whether the first character after white space is `[`. Takes nothing from the stream."""
    return stream.peek(PEEK).lstrip()[:1] == b"["


def can_be_cut(path: Path) -> bool:
    """Whether reading can begin and end within a file, by its name; of such a file, JSON Lines can and lists cannot."""
    return not path.name.endswith((".gz", ".zst", parquet.SUFFIX))


def read_chunks(
    files: Sequence[Path],
    start: Place = START,
    longest: int = MAX_DOCUMENT_MB * MEGABYTE,
    stop: Place | None = None,
    columns: Sequence[str] | None = None,
    later: bool = False,
) -> Iterator[Chunk]:
    """Chunks of about CHUNK_BYTES in order, from `start` to `stop`, or to the end. Records of more than `longest` bytes
    are not held. Within a file `stop` must lie behind a line. Of Parquet files only `columns` are read; None reads all.
    With `later` the lines of a plain file are read by whoever iterates over a chunk's records, and not here.

    Raises:
        UserError: an archive is damaged, or a Parquet file cannot be read.
    """
    stop = stop or Place(len(files))
    for index in range(start.file, stop.file + (stop.offset > 0)):
        begin = start if index == start.file else Place(index)
        end = stop.offset if index == stop.file else None
        if files[index].name.endswith(parquet.SUFFIX):
            yield from _row_chunks(files[index], begin, longest, columns)
            continue
        try:
            with open_stream(files[index]) as stream:
                if begins_list(stream):
                    yield from _list_chunks(stream, begin, longest)
                else:
                    if later and longest >= CHUNK_BYTES and isinstance(stream.raw, io.FileIO):
                        for chunk in _later_chunks(files[index], stream, begin, end):
                            yield chunk
                            begin = chunk.after
                    yield from _line_chunks(stream, begin, longest, end)
        except DAMAGED as error:
            raise UserError(f"{files[index]} cannot be read to its end ({error}); fetch or pack it again.") from error


class _Until:
    """A stream that ends after `left` bytes."""

    def __init__(self, stream: BinaryIO, left: int) -> None:
        self.stream, self.left = stream, left

    def read(self, size: int) -> bytes:
        data = self.stream.read(min(size, self.left))
        self.left -= len(data)
        return data


def _later_chunks(path: Path, stream: io.BufferedReader, begin: Place, end: int | None) -> Iterator[Chunk]:
    """Chunks of a plain file of JSON Lines up to the offset `end`, or to what is better read here. Moves no stream."""
    mark = stream.tell()  # bytes of a byte-order mark, which offsets do not count
    number, offset = begin.records, begin.offset
    stop = path.stat().st_size - mark if end is None else end
    for lines in find_lines(path, mark + offset, stop - offset, CHUNK_BYTES, CHUNK_BYTES // 16):
        first, number, offset = number + 1, number + len(lines), offset + lines.size
        yield Chunk(begin.file, first, lines, lines.size, Place(begin.file, number, offset))


def _line_chunks(stream: io.BufferedReader, begin: Place, longest: int, end: int | None) -> Iterator[Chunk]:
    """Chunks of a JSON Lines file, up to the offset `end`."""
    _advance(stream, begin.offset)
    number, offset = begin.records, begin.offset
    lines_of: Any = stream if end is None else _Until(stream, end - offset)
    for lines, size in read_lines(lines_of, CHUNK_BYTES, longest):
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
    """Pass over `offset` bytes. A plain file seeks; an archive must be unpacked up to there.

    Raises:
        EOFError: the file ends before.
    """
    if offset and isinstance(stream.raw, io.FileIO):
        stream.seek(offset, io.SEEK_CUR)
        return
    while offset:
        data = stream.read(min(offset, CHUNK_BYTES))
        if not data:
            raise EOFError("it is shorter than when the interrupted run read it")
        offset -= len(data)


def _list_chunks(stream: io.BufferedReader, begin: Place, longest: int) -> Iterator[Chunk]:
    """Chunks of a JSON list. Items before `begin` are parsed and dropped: only parsing tells where an item ends."""
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
        # Nobody can count the items that are lost, so the mean length of those before gives an estimate.
        mean = max(1, total // number) if number else 1000
        lost = Skipped(error.number, f"{error.reason}; the rest of the list is lost", records=max(1, error.lost // mean))
    yield Chunk(begin.file, number - len(records) + 1, records, size, Place(begin.file + 1), "item", lost)


def _row_chunks(path: Path, begin: Place, longest: int, columns: Sequence[str] | None) -> Iterator[Chunk]:
    """Chunks of a Parquet file."""
    records: list[Any] = []
    number, size = begin.records, 0
    for row in (row for batch in parquet.rows(path, begin.records, columns) for row in batch):
        number += 1
        texts = [value for value in row.values() if isinstance(value, str)] if isinstance(row, dict) else []
        characters = sum(map(len, texts))
        # A character takes at most 4 bytes, so only a long text is encoded to be measured.
        long = 4 * characters > longest and sum(len(text.encode("utf-8", "surrogatepass")) for text in texts) > longest
        size += characters
        if not long:
            records.append(row)
        if long or size >= CHUNK_BYTES or len(records) >= _CHUNK_ITEMS:
            lost = Skipped(number, too_long(longest)) if long else None
            yield Chunk(begin.file, number - len(records) + (not long), records, size, Place(begin.file, number), "row", lost)
            records, size = [], 0
    yield Chunk(begin.file, number - len(records) + 1, records, size, Place(begin.file + 1), "row")


@dataclass(frozen=True)
class Blank:
    """Stands for `count` successive blank lines."""

    count: int


def read_lines(stream: BinaryIO, block: int, longest: int) -> Iterator[tuple[list[bytes] | Blank | Unread, int]]:
    """A stream's lines, about `block` bytes at a time, in memory of a block and the longest line that is allowed.

    Yields (lines without their ends, bytes of the stream that they are). A line of more than `longest` bytes comes as
    an Unread of its own. The blank lines of a block that has no others come as one Blank.
    """
    pieces: list[bytes] = []  # what earlier blocks hold of a line that has not ended yet
    held = 0  # bytes of that line; beyond `longest` they are counted and not kept
    while data := stream.read(block):
        head, newline, rest = data.partition(b"\n")
        held += len(head)
        if held <= longest:
            pieces.append(head)
        else:
            pieces.clear()
        if newline:
            first = _line(pieces, held, longest)
            whole, newline, begun = rest.rpartition(b"\n")
            lines = whole.split(b"\n") if newline else []
            blank = bool(newline) and not whole.strip()
            if blank or isinstance(first, Unread):
                yield first, held + 1
            else:
                lines = first + lines
            if blank:
                yield Blank(len(lines)), len(whole) + 1
            else:
                yield from _whole_lines(lines, longest)
            pieces, held = [begun] if len(begun) <= longest else [], len(begun)
    if held:
        yield _line(pieces, held, longest), held


def _line(pieces: list[bytes], held: int, longest: int) -> list[bytes] | Unread:
    """One line out of its pieces, as a list; an Unread if it is too long."""
    return [b"".join(pieces)] if held <= longest else Unread(too_long(longest), held)


def _whole_lines(lines: list[bytes], longest: int) -> Iterator[tuple[list[bytes] | Unread, int]]:
    """Lines in the form of `read_lines`: those that are too long come apart from the others."""
    begin = 0
    for end in [i for i, line in enumerate(lines) if len(line) > longest]:
        yield from _parts(lines[begin:end])
        yield Unread(too_long(longest), len(lines[end])), len(lines[end]) + 1
        begin = end + 1
    yield from _parts(lines[begin:])


def _parts(lines: list[bytes]) -> Iterator[tuple[list[bytes], int]]:
    """Lists of at most _MOST_LINES lines, with their bytes."""
    for begin in range(0, len(lines), _MOST_LINES):
        part = lines[begin : begin + _MOST_LINES]
        yield part, sum(map(len, part)) + len(part)
