"""Which part of the input each of several machines prepares: ranges end to end, with about as many bytes in each."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from megatron_patch.errors import UserError
from megatron_patch.records.chunks import DAMAGED, Chunk, Place, begins_list, can_be_cut, open_stream, read_chunks

_MOST = 100_000
_FORM = re.compile(r"([1-9][0-9]{0,5})/([1-9][0-9]{0,5})")
_BLOCK = 1 << 16


@dataclass(frozen=True)
class Shard:
    """Part `number` of `count`, from 1. The parts of one input have nothing in common and lie in the input's order."""

    number: int
    count: int

    @property
    def suffix(self) -> str:
        """What the name of its pair ends in, such as -00002-of-00016; the names' order is the parts'."""
        return f"-{self.number:05d}-of-{self.count:05d}"


def parse_shard(text: str) -> Shard:
    """The shard that a text such as 2/16 names.

    Raises:
        UserError: it names none.
    """
    match = _FORM.fullmatch(text.strip())
    if not match or not int(match[1]) <= int(match[2]) <= _MOST:
        raise UserError(f"it takes I/N, part I of N, with I from 1 to N and N up to {_MOST}: write 1/2, for example.")
    return Shard(int(match[1]), int(match[2]))


@dataclass(frozen=True)
class Span:
    """The records of `files` from `begin` to `stop`."""

    files: list[Path]
    begin: Place
    stop: Place

    def chunks(self, start: Place, longest: int, columns: Sequence[str]) -> Iterator[Chunk]:
        """The span's chunks from `start` on, as `read_chunks` gives them. Lines of plain files are read later.

        Raises:
            UserError: an archive is damaged.
        """
        return read_chunks(self.files, start, longest, self.stop, columns, later=True)

    def size(self, start: Place) -> int:
        """Bytes of the files from `start` to the span's end."""
        whole = sum(file.stat().st_size for file in self.files[start.file : self.stop.file])
        return whole + self.stop.offset - start.offset

    def behind(self, file: int) -> int:
        """Bytes of a file that lie before the span and whose lines nobody has counted."""
        return self.begin.offset if file == self.begin.file else 0

    def whence(self, file: int) -> str:
        """What must be said behind a line's number in that file."""
        return f" behind byte {self.behind(file)}" if self.behind(file) else ""


def span_of(files: list[Path], shard: Shard | None) -> Span:
    """The shard's part of the files; all of them without a shard.

    Raises:
        UserError: a file cannot be read.
    """
    return Span(files, *_range(files, shard)) if shard else Span(files, Place(), Place(len(files)))


def _range(files: Sequence[Path], shard: Shard) -> tuple[Place, Place]:
    """Where the shard begins, and where the next one does. `records` of the places are 0: nobody has counted them.

    Plain JSON Lines are cut behind the line in which a boundary falls. A list, an archive and a Parquet file belong to
    the shard in which their middle lies.
    """
    sizes = [file.stat().st_size for file in files]
    ends = list(accumulate(sizes))
    total = ends[-1] if ends else 0

    def boundary(number: int) -> Place:
        byte = total * number // shard.count
        index = bisect_right(ends, byte)
        if number == shard.count or index >= len(files):
            return Place(len(files))
        inside = byte - (ends[index] - sizes[index])
        if not inside:
            return Place(index)
        if not can_be_cut(files[index]) or _is_list(files[index]):
            return Place(index if 2 * inside < sizes[index] else index + 1)
        return _behind_line(files[index], index, inside)

    return (Place() if shard.number == 1 else boundary(shard.number - 1)), boundary(shard.number)


def _is_list(path: Path) -> bool:
    """Whether a file holds a JSON list.

    Raises:
        UserError: it cannot be read.
    """
    try:
        with open_stream(path) as stream:
            return begins_list(stream)
    except DAMAGED as error:
        raise UserError(f"{path} cannot be read ({error}); fetch it again.") from error


def _behind_line(path: Path, index: int, byte: int) -> Place:
    """The place behind the line that holds byte `byte - 1` of a file. Offsets do not count a byte-order mark."""
    with open(path, "rb") as file:
        mark = 3 if file.read(3) == b"\xef\xbb\xbf" else 0
        begin = max(byte - 1, mark)
        file.seek(begin)
        while block := file.read(_BLOCK):
            newline = block.find(b"\n")
            if newline >= 0:
                at = begin + newline + 1
                return Place(index, 0, at - mark) if at < path.stat().st_size else Place(index + 1)
            begin += len(block)
    return Place(index + 1)
