"""CRC-32 of what is read from torch's archives, compared with the sums that their zips hold.

torch maps a file into memory or reads it past its zip's checks, so a flipped bit would go on as another weight. Here
each piece that is read is summed in the thread that has read it. The sums of pieces combine to that of the whole
record, in whatever order and by whichever process they were read.
"""

from __future__ import annotations

import os
import threading
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from megatron_patch.errors import UserError, all_or_none, named, once_more

_POLYNOMIAL = 0xEDB88320  # CRC-32's, its lowest power in the highest bit
_BLOCK = 1 << 20  # bytes read at a time of what nobody has read


def _times(one: int, other: int) -> int:
    """The product of two polynomials over GF(2), modulo CRC-32's."""
    product, bit = 0, 1 << 31
    while one:
        if one & bit:
            product ^= other
            one ^= bit
        bit >>= 1
        other = other >> 1 ^ (_POLYNOMIAL if other & 1 else 0)
    return product


@lru_cache(maxsize=4096)
def _shift(length: int) -> int:
    """x to the power of 8 · `length`, modulo CRC-32's polynomial: what `length` bytes behind a sum multiply it with."""
    result, square = 1 << 31, 1 << 23  # 1, and x to the power of 8
    while length:
        if length & 1:
            result = _times(result, square)
        square = _times(square, square)
        length >>= 1
    return result


def combined(first: int, second: int, length: int) -> int:
    """The CRC-32 of two pieces, one behind the other, of their CRC-32s and the second one's number of bytes."""
    return _times(_shift(length), first) ^ second


@dataclass(eq=False)
class Record:
    """One storage of an archive: bytes of a file, with the sum that they must have.

    Attributes:
        name: what lies there, for the error.
        start, size: its first byte in the file, and the number of its bytes.
        crc: their CRC-32.
        pieces: of what was read: first byte in the record → number of bytes → CRC-32.
        is_checked: whether all of it was read and compared.
    """

    path: Path
    name: str
    start: int
    size: int
    crc: int
    pieces: dict[int, dict[int, int]] = field(default_factory=dict)
    is_checked: bool = False
    _read: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def is_open(self) -> bool:
        """Whether some of it was read, and not all of it compared."""
        return bool(self.pieces) and not self.is_checked

    def note(self, position: int, data: memoryview) -> None:
        """Sum what was read from byte `position` of the file on; compare when all of the record has been read.

        Several threads may call it.

        Raises:
            UserError: the record has another sum than when it was written.
        """
        first, length = position - self.start, data.nbytes
        if self.is_checked or not length or length in self.pieces.get(first, ()):
            return
        crc = zlib.crc32(data)
        with self._lock:
            self.pieces.setdefault(first, {})[length] = crc
            self._read += length
            is_all = self._read >= self.size
        if is_all and (found := self._sum()) is not None:
            self._compare(found)

    def take(self, pieces: dict[int, dict[int, int]]) -> None:
        """Add what another process has read of it."""
        with self._lock:
            for first, sums in pieces.items():
                self.pieces.setdefault(first, {}).update(sums)

    def finish(self) -> None:
        """Read what nobody has read of it, and compare.

        Raises:
            UserError: as in `note`; or the file ends too early.
        """
        found = self._sum()
        if found is None:
            descriptor = os.open(self.path, os.O_RDONLY)
            try:
                found = self._sum_reading(descriptor)
            finally:
                os.close(descriptor)
        self._compare(found)

    def _sum(self) -> int | None:
        """The sum of the whole record, if pieces that were read make it up without a gap; else None.

        The longest piece from each place is taken; where that does not lead to the end, reading again does.
        """
        with self._lock:
            place = crc = 0
            while place < self.size:
                sums = self.pieces.get(place)
                if sums is None:
                    return None
                length = max(sums)
                crc = combined(crc, sums[length], length)
                place += length
            return crc if place == self.size else None

    def _sum_reading(self, descriptor: int) -> int:
        """The sum of the whole record, with what lies between the pieces read now."""
        place = crc = 0
        firsts = sorted(self.pieces)
        while place < self.size:
            sums = {length: one for length, one in self.pieces.get(place, {}).items() if place + length <= self.size}
            if sums:
                length = max(sums)
                crc = combined(crc, sums[length], length)
            else:
                following = next((first for first in firsts if first > place), self.size)
                try:
                    data = os.pread(descriptor, min(_BLOCK, following - place), self.start + place)
                except OSError as error:
                    named(error, self.path)
                    raise
                if not data:
                    raise UserError(f"{self.path} ends inside {self.name}; the file is truncated: copy it again.")
                crc, length = zlib.crc32(data, crc), len(data)
            place += length
        return crc

    def _compare(self, found: int) -> None:
        if found != self.crc:
            raise UserError(
                f"{self.path} is damaged: the bytes of {self.name} have the CRC-32 {found:08x}, and were written with "
                f"{self.crc:08x}; copy the file again."
            )
        self.is_checked = True
        self.pieces = {}


def finish_together(records: Iterable[Record], rank: int, exchange: Callable[[Any], list[Any]]) -> None:
    """Finish what several processes have read parts of; all of them call it.

    What they have read between them is not read again. The rest of a record is read by one of those that have read some
    of it: others may not have its file.

    Args:
        records: what this process has read of; those that were compared already, or not begun, do not count.
        rank: this process's place in what `exchange` gives.
        exchange: gives the objects of all processes, in the order of their ranks, for this one's.

    Raises:
        OnEveryRank: a record has another sum than when it was written.
    """
    own = {id(one): one for one in records if one.is_open}.values()
    everybodys = exchange([((str(one.path), one.start), one.name, one.size, one.crc, one.pieces) for one in own])
    merged: dict[tuple[str, int], Record] = {}
    readers: dict[tuple[str, int], list[int]] = {}
    for reader, items in enumerate(everybodys):
        for (path, start), name, size, crc, pieces in items:
            merged.setdefault((path, start), Record(Path(path), name, start, size, crc)).take(pieces)
            readers.setdefault((path, start), []).append(reader)

    def finish_share() -> None:
        for place, key in enumerate(sorted(merged)):
            if readers[key][place % len(readers[key])] == rank:
                once_more(merged[key].finish)

    all_or_none(finish_share, exchange)
    for one in own:
        one.is_checked, one.pieces = True, {}
