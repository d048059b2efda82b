"""The lines of a stream, in memory of a block and the longest line that is allowed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

from megatron_patch.data.records import Unread, too_long


def read_lines(stream: BinaryIO, block: int, longest: int) -> Iterator[tuple[list[bytes | Unread], int]]:
    """Lines without their ends, about a `block` of bytes at a time, and how many bytes of the stream they are.

    A line of more than `longest` bytes is one Unread, and so are the blank lines of a block that has no others.
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
            whole, newline, begun = rest.rpartition(b"\n")
            lines = [b"".join(pieces) if held <= longest else Unread(too_long(longest), held)]
            lines += _lines(whole, longest) if newline else []
            yield lines, held + len(data) - len(head) - len(begun)
            pieces, held = [begun] if len(begun) <= longest else [], len(begun)
    if held:
        yield [b"".join(pieces) if held <= longest else Unread(too_long(longest), held)], held


def _lines(whole: bytes, longest: int) -> list[bytes | Unread]:
    """The lines of a block that neither begins nor ends within one."""
    if not whole.strip():
        return [Unread("it is empty", len(whole) + 1, count=whole.count(b"\n") + 1, empty=True)]
    lines = whole.split(b"\n")
    if len(whole) <= longest:
        return lines
    return [line if len(line) <= longest else Unread(too_long(longest), len(line)) for line in lines]
