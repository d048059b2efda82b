"""Compressed files as byte streams whose memory does not depend on what a frame or member expands to."""

from __future__ import annotations

import gzip
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

_READ = 1 << 20
# Compressed bytes unpacked at a time. A Zstandard block takes at least 4 bytes and gives at most 128 KiB, so these give
# at most 16 MiB. Larger pieces are no faster.
_FEED = 512
_WINDOW = 1 << 27  # largest window that the zstd command unpacks without --long or --memory


def open_archive(path: Path) -> io.RawIOBase:
    """The uncompressed bytes of a `.gz` or `.zst` file: all its members or frames, one after the other.

    Reading from it raises OSError, EOFError or zlib.error if the file is damaged or cut within a frame.
    """
    if path.name.endswith(".gz"):
        file: Any = gzip.open(path, "rb")  # noqa: SIM115 _Pieces closes it
        return _Pieces(file, iter(lambda: file.read(_READ), b""))
    file = open(path, "rb")  # noqa: SIM115
    return _Pieces(file, _zstd_pieces(file))


class _Pieces(io.RawIOBase):
    """Pieces of bytes as a raw stream that fills each read, except the last.

    io.BufferedReader's `peek` makes one raw read. Since that read is filled, `peek` shows enough of a file's beginning,
    however small the first frames are.
    """

    def __init__(self, file: BinaryIO, pieces: Iterator[bytes]) -> None:
        self.file, self.pieces, self.piece = file, pieces, memoryview(b"")

    def readable(self) -> bool:
        """What io.BufferedReader asks for."""
        return True

    def close(self) -> None:
        """Close the file below, too."""
        self.file.close()
        super().close()

    def readinto(self, target: Any) -> int:
        """Fill `target` from as many pieces as it takes. Returns the bytes written; fewer than asked for at the end
        only.
        """
        filled, size = 0, len(target)
        while filled < size:
            if not self.piece:
                self.piece = memoryview(next(self.pieces, b""))
                if not self.piece:
                    break
            count = min(size - filled, len(self.piece))
            target[filled : filled + count] = self.piece[:count]
            self.piece = self.piece[count:]
            filled += count
        return filled


def _zstd_pieces(file: BinaryIO) -> Iterator[bytes]:
    """The uncompressed pieces of a Zstandard file, none of them empty.

    zstandard's own reader takes a truncated file for one that has ended.

    Raises:
        EOFError: the file ends within a frame.
        OSError: the file is damaged, or a frame needs a window of more than 128 MiB.
    """
    import zstandard

    decompressor = zstandard.ZstdDecompressor(max_window_size=_WINDOW)
    frame, data = None, b""
    while data or (data := file.read(_FEED)):
        frame = frame or decompressor.decompressobj()
        try:
            piece = frame.decompress(data)
        except zstandard.ZstdError as error:
            if "too much memory" in str(error):
                wanted = f"a frame of it wants a window of more than {_WINDOW >> 20} MiB, as zstd --long=28 makes it"
                raise OSError(wanted) from error
            raise OSError(f"the Zstandard file is damaged: {error}") from error
        data = frame.unused_data if frame.eof else b""
        frame = None if frame.eof else frame
        if piece:
            yield piece
    if frame is not None:
        raise EOFError("the Zstandard file ends within a frame")
