"""The archive that torch.save makes of one tensor, written while the tensor's bytes stream by. Imports no torch.

It is an uncompressed zip of `data.pkl` (how to rebuild the tensor), `data/0` (its bytes) and two small records, with
each record's CRC-32 as torch writes it. `distcp.py` reads it, and says what stands in `data.pkl`.
"""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Iterable
from typing import Protocol

_ALIGNMENT = 64  # bytes, as torch aligns storages in its archives


class Writer(Protocol):
    """What takes bytes one after the other: a file, or a `streaming.Sink`."""

    def write(self, data: bytes | memoryview, /) -> int:
        """Append `data`; returns its number of bytes."""


class _Forward:
    """A sink without `seek` and `tell`, so that zipfile treats it as a pipe. It counts the bytes of this archive."""

    def __init__(self, stream: Writer) -> None:
        self.stream, self.count = stream, 0

    def write(self, data: bytes | memoryview) -> int:
        self.count += self.stream.write(data)
        return len(data)

    def flush(self) -> None:
        """zipfile calls it; nothing is held back here."""


def write_archive(stream: Writer, description: bytes, size: int, data: Iterable[bytes | memoryview]) -> int:
    """Append an archive to `stream`, and return the number of bytes written.

    Args:
        description: `data.pkl`.
        size: the tensor's bytes, which `data` gives piece by piece.
    """
    sink = _Forward(stream)
    # typeshed asks for a method `close`, which zipfile calls only for files that it has opened itself.
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_STORED) as archive:  # type: ignore[call-overload]
        archive.writestr(zipfile.ZipInfo("archive/data.pkl"), description)
        archive.writestr(zipfile.ZipInfo("archive/byteorder"), b"little")
        record = zipfile.ZipInfo("archive/data/0")
        record.file_size = size
        record.extra = _padding(sink.count + 30 + len(record.filename), record.file_size)
        with archive.open(record, "w") as storage:
            for piece in data:
                storage.write(piece)
        archive.writestr(zipfile.ZipInfo("archive/version"), b"3\n")
    return sink.count


def _padding(header_end: int, size: int) -> bytes:
    """A zip extra field after which the data begins at a multiple of 64 bytes. torch marks its own as "FB" as well.

    Args:
        header_end: where the field begins in the archive, in bytes.
        size: bytes of the record. zipfile puts a field of 20 bytes in front of this one if it expects a large record.
    """
    zip64 = 20 if size * 1.05 > zipfile.ZIP64_LIMIT else 0
    length = -(header_end + zip64 + 4) % _ALIGNMENT
    return struct.pack("<2sH", b"FB", length) + b"Z" * length
