"""The zip around a torch.save archive: where its records lie, and that every reader of zips would find the same ones.

zipfile and torch's reader look for the directory by different rules: one believes the record at the end, the other an
offset that stands elsewhere. What is loaded here is made of the records that this module finds, so the difference
cannot be used. A file in which the two could differ is refused all the same: no writer makes one by accident.
"""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from dataclasses import dataclass
from typing import Any, BinaryIO

_MAX_SMALL_READ = 8 << 20  # bytes of the zip's directory, and of data.pkl
# The end of a zip: the directory's size and place, and, above 4 GiB or always, the same with 64 bits before it.
_END, _LOCATOR, _END_64 = struct.Struct("<4s4H2IH"), struct.Struct("<4sIQI"), struct.Struct("<4sQ2H2I4Q")
_IS_IN_64 = (*[(1 << 16) - 1] * 4, *[(1 << 32) - 1] * 2)  # what a number of `_END` is if it stands in `_END_64` alone


class Window(io.RawIOBase):
    """A part of a file as a file of its own: `length` bytes from `offset` on.

    A read of more than `_MAX_SMALL_READ` bytes raises BadZipFile. zipfile would otherwise read as much as a damaged
    directory says it is long.
    """

    def __init__(self, stream: BinaryIO, offset: int, length: int) -> None:
        self.stream, self.offset, self.length, self.position = stream, offset, length, 0

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def tell(self) -> int:
        """The position in the window, in bytes."""
        return self.position

    def seek(self, position: int, whence: int = io.SEEK_SET) -> int:
        """Move to a position in the window and return it; its end stands for all behind it, however far."""
        self.position = min(max(0, position + (0, self.position, self.length)[whence]), self.length)
        return self.position

    def read(self, size: int = -1) -> bytes:
        """Up to `size` bytes from the position on, never more than the window has.

        Raises:
            zipfile.BadZipFile: these would be more than `_MAX_SMALL_READ` bytes.
        """
        rest = max(0, self.length - self.position)
        wanted = rest if size < 0 else min(size, rest)
        if wanted > _MAX_SMALL_READ:
            raise zipfile.BadZipFile(f"its directory or description is said to have {wanted} bytes")
        self.stream.seek(self.offset + self.position)
        data = self.stream.read(wanted)
        self.position += len(data)
        return data


@dataclass(frozen=True)
class Records:
    """The records of an archive, by their names in its one folder.

    Attributes:
        places: (first byte in the window, number of bytes) of each.
        sums: the CRC-32 of each. Empty where the archive was written without sums
            (`torch.serialization.set_crc32_options`); then the directory says 0 for all.
    """

    window: Window
    places: dict[str, tuple[int, int]]
    sums: dict[str, int]

    def content(self, name: str) -> bytes:
        """The bytes of a small record, compared with its sum; none if it is not there.

        Raises:
            zipfile.BadZipFile: it has another sum, or is not small.
        """
        start, size = self.places.get(name, (0, 0))
        self.window.seek(start)
        content = self.window.read(size)
        if zlib.crc32(content) != self.sums.get(name, zlib.crc32(content)):
            raise zipfile.BadZipFile(f"its record {name!r} has another CRC-32 than when it was written")
        return content


def read_records(window: Window) -> Records:
    """The records of the zip in `window`. They are uncompressed, and none overlaps another.

    torch ignores the case of names, and takes the folder of the record that is listed first. So two names that differ
    in case, or a second folder, are refused.

    Raises:
        zipfile.BadZipFile: the zip is damaged or compressed, or torch does not write such ones.
    """
    with zipfile.ZipFile(window) as archive:
        infos, directory = sorted(archive.infolist(), key=lambda info: info.header_offset), archive.start_dir
        if archive.comment or not infos or infos[0].header_offset != 0 or any(info.comment for info in infos):
            raise zipfile.BadZipFile("it has something before, behind or instead of its records")
    if directory != _directory(window, len(infos)):
        raise zipfile.BadZipFile("it says in two ways where its directory is")
    places: dict[str, tuple[int, int]] = {}
    folder, end = infos[0].filename.partition("/")[0] + "/", 0
    if any(info.orig_filename != info.filename or not info.filename.startswith(folder) for info in infos):
        raise zipfile.BadZipFile("its records are not those of one folder")
    if len({info.filename.casefold() for info in infos}) != len(infos):
        raise zipfile.BadZipFile("it has a record twice")
    for info in infos:
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1 or info.file_size != info.compress_size:
            raise zipfile.BadZipFile(f"its record {info.filename[:100]!r} is compressed, as torch's are not")
        window.seek(info.header_offset)
        header = window.read(30)
        if info.header_offset < end or header[:4] != b"PK\3\4" or len(header) != 30:
            raise zipfile.BadZipFile(f"its record {info.filename[:100]!r} overlaps another")
        start = info.header_offset + 30 + sum(struct.unpack("<HH", header[26:]))
        end = start + info.file_size
        if end > directory:
            raise zipfile.BadZipFile(f"its record {info.filename[:100]!r} ends behind the others")
        places[info.filename.removeprefix(folder)] = start, info.file_size
    has_sums = any(info.CRC for info in infos)
    return Records(window, places, {info.filename.removeprefix(folder): info.CRC for info in infos if has_sums})


def _directory(window: Window, count: int) -> int:
    """The byte at which the directory of `count` records begins, as the window's very end says.

    zipfile of some Python versions takes the 64-bit record only from where it belongs, and torch from wherever its
    locator points (CVE-2025-8291). So the locator must point to where it belongs, and the directory must end there.

    Raises:
        zipfile.BadZipFile: anything else stands there.
    """
    at = window.length - _END.size
    mark, *numbers, comment = _tail(window, _END, at)
    end, is_sound = at, mark == b"PK\5\6" and comment == 0
    locator, *where = _tail(window, _LOCATOR, at - _LOCATOR.size)
    if locator == b"PK\6\7":
        end, small = at - _LOCATOR.size - _END_64.size, numbers
        mark, size, _, _, *numbers = _tail(window, _END_64, end)
        is_same = all(one in (large, full) for one, large, full in zip(small, numbers, _IS_IN_64, strict=True))
        is_sound &= is_same and [mark, size, *where] == [b"PK\6\6", _END_64.size - 12, 0, end, 1]
    *of_disks, here, all_disks, size, start = numbers
    if not is_sound or of_disks != [0, 0] or (here, all_disks, start + size) != (count, count, end):
        raise zipfile.BadZipFile("it says in two ways where its directory is")
    return int(start)


def _tail(window: Window, kind: struct.Struct, place: int) -> tuple[Any, ...]:
    """The fields of a record at the end of the zip; zeros where the window has no such place."""
    if place < 0:
        return kind.unpack(bytes(kind.size))
    window.seek(place)
    return kind.unpack(window.read(kind.size))
