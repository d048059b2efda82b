"""The lines of a stream, in memory of a block and the longest line that is allowed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from megatron_patch.records.json_records import Unread, too_long

_MOST_LINES = 1 << 16


@dataclass(frozen=True)
class Blank:
    """So many blank lines one after the other."""

    count: int


def read_lines(stream: BinaryIO, block: int, longest: int) -> Iterator[tuple[list[bytes] | Blank | Unread, int]]:
    """Lines without their ends, about a `block` of bytes at a time, and how many bytes of the stream they are.

    A line of more than `longest` bytes is an Unread instead, and the blank lines of a block that has no others are one Blank.
    """
    pieces: list[bytes] = []  # of the line that the last block began
    held = 0  # its bytes, also where it is too long to be kept
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
    return [b"".join(pieces)] if held <= longest else Unread(too_long(longest), held)


def _whole_lines(lines: list[bytes], longest: int) -> Iterator[tuple[list[bytes] | Unread, int]]:
    begin = 0
    for end in [i for i, line in enumerate(lines) if len(line) > longest]:
        yield from _parts(lines[begin:end])
        yield Unread(too_long(longest), len(lines[end])), len(lines[end]) + 1
        begin = end + 1
    yield from _parts(lines[begin:])


def _parts(lines: list[bytes]) -> Iterator[tuple[list[bytes], int]]:
    """Lists of so many lines that they are not much more than a block once they are objects, however short they are."""
    for begin in range(0, len(lines), _MOST_LINES):
        part = lines[begin : begin + _MOST_LINES]
        yield part, sum(map(len, part)) + len(part)
