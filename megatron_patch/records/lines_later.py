"""Lines of a plain file that are found by one process and read by another.

The main process of preparation counts lines and looks where blocks end. Whoever tokenizes reads and splits them. With
sixteen workers one process that did that for all would be the slowest of them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from megatron_patch.errors import UserError


@dataclass(frozen=True)
class LinesLater:
    """`count` successive lines of a file: `size` bytes from byte `position` on. Iterating over them reads them."""

    path: Path
    position: int
    size: int
    count: int

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[bytes]:
        with open(self.path, "rb", buffering=0) as file:
            data = os.pread(file.fileno(), self.size, self.position)
        lines = data.removesuffix(b"\n").split(b"\n")
        if len(data) != self.size or len(lines) != self.count:
            raise UserError(f"{self.path} changed while it was read; run the command again when it is whole.")
        return iter(lines)


def find_lines(path: Path, position: int, left: int, block: int, most: int) -> Iterator[LinesLater]:
    """Lines from byte `position` of a file on, about `block` bytes at a time.

    Args:
        left: bytes to look at. A line ends with them, or the file does.
        most: lines that a block may have; no record is so short that there are more, so most of them are blank.

    Yields:
        Until the end, or until a block is unusual: one line fills it, it has more than `most`, or all are blank.
    """
    with open(path, "rb", buffering=0) as file:
        while left > 0:
            data = os.pread(file.fileno(), min(block, left), position)
            is_last = len(data) == left
            size = len(data) if is_last else data.rfind(b"\n") + 1
            count = data.count(b"\n") + (is_last and not data.endswith(b"\n"))
            if not size or count > most or not data[:size].strip():
                return
            yield LinesLater(path, position, size, count)
            position, left = position + size, left - size
