"""The archive that torch.save makes of one tensor, around bytes that several threads make. Imports no torch.

It is an uncompressed zip of `data.pkl` (how to rebuild the tensor), `data/0` (its bytes) and two small records.
torch.save needs the tensor in memory. Here what stands around its bytes is made alone, with their CRC-32 as torch
writes it. `distcp.py` reads archives, and says what stands in `data.pkl`.
"""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Callable, Iterable

from megatron_patch.formats.checksums import combined
from megatron_patch.formats.new_files import NewFile
from megatron_patch.formats.past_cache import BLOCK

# Of zip: a record's flag for "its sum and sizes stand behind its bytes", and what marks them there.
_SUM_BEHIND, _SUM_FOLLOWS = 0x08, 0x08074B50


class _Forward:
    """Takes what zipfile writes. Without `seek`, so that zipfile treats it as a pipe and puts sums behind the bytes."""

    def __init__(self) -> None:
        self.data, self.skipped = bytearray(), 0

    def write(self, data: bytes) -> int:
        """Append `data`."""
        self.data += data
        return len(data)

    def tell(self) -> int:
        """The place in the archive."""
        return self.skipped + len(self.data)

    def flush(self) -> None:
        """zipfile calls it; nothing is held back here."""


def around(description: bytes, size: int, crc: int) -> tuple[bytes, bytes]:
    """What stands in an archive before and behind the bytes of its tensor. Both lengths are the same for every `crc`.

    The tensor's bytes begin at a whole block from the archive's start.

    Args:
        description: `data.pkl`.
        size: the tensor's, in bytes.
        crc: the CRC-32 of the tensor's bytes.
    """
    sink = _Forward()
    # typeshed asks for a method `close`, which zipfile calls only for files that it has opened itself.
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_STORED) as archive:  # type: ignore[call-overload]
        archive.writestr(zipfile.ZipInfo("archive/data.pkl"), description)
        archive.writestr(zipfile.ZipInfo("archive/byteorder"), b"little")
        record = zipfile.ZipInfo("archive/data/0")
        record.header_offset, record.flag_bits = sink.tell(), _SUM_BEHIND
        is_large = size > zipfile.ZIP64_LIMIT
        record.extra = _padding(sink.tell() + len(record.FileHeader(zip64=is_large)))
        sink.write(record.FileHeader(zip64=is_large))
        front = len(sink.data)
        sink.skipped = size
        record.extra = b""  # the directory need not be padded
        record.CRC, record.compress_size, record.file_size = crc, size, size
        sink.write(struct.pack("<LLQQ" if is_large else "<LLLL", _SUM_FOLLOWS, crc, size, size))
        archive.infolist().append(record)
        archive.writestr(zipfile.ZipInfo("archive/version"), b"3\n")
    return bytes(sink.data[:front]), bytes(sink.data[front:])


def _padding(header_end: int) -> bytes:
    """A zip extra field after which the data begins at a whole block. torch marks its own as "FB" as well.

    header_end: where the field begins in the archive, in bytes.
    """
    length = -(header_end + 4) % BLOCK
    return struct.pack("<2sH", b"FB", length) + b"Z" * length


def add_archive(file: NewFile, description: bytes, pieces: Iterable[tuple[int, Callable[[memoryview], None]]]) -> tuple[int, int]:
    """Add an archive to a new file; returns its first byte there and the number of its bytes.

    It begins in a block of its own, and so do its tensor's bytes: they are then read and written without a copy.

    Args:
        description: `data.pkl`.
        pieces: of the tensor's bytes, from the first to the last: how many each has, and what makes them, in whichever
            thread.
    """
    found = list(pieces)
    size = sum(count for count, _ in found)
    file.add_bytes(bytes(-file.size % BLOCK))
    start = file.size
    front, behind = around(description, size, crc=0)
    file.add_bytes(front)
    parts = [file.add(count, fill, is_summed=True) for count, fill in found]

    def fill(out: memoryview) -> None:
        crc = 0
        for part in parts:
            crc = combined(crc, part.crc(), part.size)
        out[:] = around(description, size, crc)[1]

    file.add(len(behind), fill)
    return start, file.size - start
