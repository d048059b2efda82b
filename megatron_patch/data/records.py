"""Reading JSON records as a stream: JSON Lines and JSON lists, plain, gzip or Zstandard, one file at a time
in memory of a few MiB whatever its size.

The form is told by the first character, not by the name: `[` begins a list, anything else lines. (`.json` is
commonly used for both.) zstandard is imported when a `.zst` file is opened.
"""

from __future__ import annotations

import codecs
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

SUFFIXES = (".jsonl", ".json", ".jsonl.zst", ".jsonl.gz", ".json.zst", ".json.gz")
DAMAGED = (EOFError, OSError, zlib.error)  # what reading a damaged archive raises
_BEGINS_JSON = re.compile(rb'\s*(\{\s*["}]|\[\s*[{\]])')
_READ = 1 << 20  # bytes or characters asked for at a time
_LONGEST_ITEM = 1 << 28  # characters: a list item longer than this is taken for an unclosed string


class BrokenListError(ValueError):
    """A JSON list that stops being JSON at item `number` (from 1); `lost` characters from there on cannot be
    read.
    """

    def __init__(self, number: int, reason: str, lost: int) -> None:
        super().__init__(f"item {number}: {reason}; {lost} characters from there to the end cannot be read")
        self.number, self.reason, self.lost = number, reason, lost


def find_files(inputs: Sequence[str | Path]) -> list[Path]:
    """The data files that `inputs` name, folders replaced by their own data files in the order of their
    names.

    Raises ValueError for a path that does not exist, a folder without data files, and a file with another
    suffix whose content is no JSON either.
    """
    files: list[Path] = []
    for path in map(Path, inputs):
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.name.endswith(SUFFIXES) and p.is_file())
            if not inside:
                raise ValueError(f"{path} holds no data files; put {', '.join(SUFFIXES[:4])} files there.")
            files += inside
        elif not path.is_file():
            raise ValueError(
                f"{path} does not exist; give a data file, or a folder of {', '.join(SUFFIXES[:4])} files."
            )
        elif not path.name.endswith(SUFFIXES) and not holds_json(path):
            raise ValueError(
                f"{path} has no suffix that is read, and does not begin as JSON does; "
                f"name it {', '.join(SUFFIXES[:4])} after its form."
            )
        else:
            files.append(path)
    return files


def open_stream(path: Path) -> BinaryIO:
    """The file's uncompressed bytes, without a byte-order mark. Reading a damaged archive raises one of
    DAMAGED.
    """
    if path.name.endswith(".gz"):
        raw: Any = gzip.open(path, "rb")  # noqa: SIM115 the caller closes what is returned
    else:
        raw = open(path, "rb")  # noqa: SIM115
    stream = io.BufferedReader(_ZstdReader(raw) if path.name.endswith(".zst") else raw, _READ)
    if stream.peek(3)[:3] == b"\xef\xbb\xbf":
        stream.read(3)
    return stream


def holds_json(path: Path) -> bool:
    """Whether a file begins as a JSON object does, or as a list of objects, whatever its name."""
    try:
        with open_stream(path) as stream:
            return _BEGINS_JSON.match(stream.peek(_READ)) is not None
    except DAMAGED:
        return False


def begins_list(stream: io.BufferedReader) -> bool:
    """Whether the first character after white space is `[`. Takes nothing from the stream."""
    return stream.peek(_READ).lstrip()[:1] == b"["


def read_list(stream: BinaryIO) -> Iterator[tuple[int, Any]]:
    """(item number from 1, value) of a JSON list. Raises BrokenListError where it stops being one."""
    text, decoder = _Text(stream), json.JSONDecoder()
    if text.next() != "[":
        raise BrokenListError(1, "a list should begin with '['", text.rest())
    text.position += 1
    number = 0
    while True:
        number += 1
        try:
            if number == 1 and text.next() == "]":
                break
            yield number, text.value(decoder)
            separator = text.next()
            if separator == "]":
                break
            if separator != ",":
                raise ValueError(
                    f"',' or ']' should follow it, not {separator!r}" if separator else "the file ends early"
                )
            text.position += 1
        except (ValueError, RecursionError) as error:
            raise BrokenListError(number, str(error), text.rest()) from error
    text.position += 1
    if text.next():
        raise BrokenListError(number + 1, "something follows the list's closing ']'", text.rest())


def require_unicode(text: str) -> str:
    """`text`, which JSON's escapes can give half of a surrogate pair. ValueError, one phrase, where they did."""
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            raise ValueError("it holds half of a surrogate pair, which is no character") from None
    return text


class _ZstdReader(io.RawIOBase):
    """Zstandard frames as a byte stream. Unlike zstandard's own reader it does not take a truncated file for
    the end.
    """

    def __init__(self, file: BinaryIO) -> None:
        import zstandard

        self.file, self.frame, self.ready, self.decompressor = file, None, b"", zstandard.ZstdDecompressor()
        self.error = zstandard.ZstdError

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self.file.close()
        super().close()

    def readinto(self, target: Any) -> int:
        while not self.ready:
            data = self.frame.unused_data if self.frame is not None and self.frame.eof else b""
            if data or self.frame is None or self.frame.eof:
                data = data or self.file.read(_READ)
                if not data:
                    return 0
                self.frame = self.decompressor.decompressobj()
            elif not (data := self.file.read(_READ)):
                raise EOFError("the Zstandard file ends within a frame")
            try:
                self.ready = self.frame.decompress(data)
            except self.error as error:
                raise OSError(f"the Zstandard file is damaged: {error}") from error
        count = min(len(self.ready), len(target))
        target[:count] = self.ready[:count]
        self.ready = self.ready[count:]
        return count


class _Text:
    """A window over a stream's text, at which JSON values are read one by one."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream, self.decoder = stream, codecs.getincrementaldecoder("utf-8")()
        self.buffer, self.position, self.undecoded = "", 0, 0

    def more(self) -> bool:
        """Read on, at least as much as is waiting (so that a long value is parsed a logarithmic number of
        times).

        Text before bytes that are not UTF-8 is still given; the call after that raises ValueError.
        """
        if self.undecoded:
            raise ValueError("bytes that are not UTF-8")
        data = self.stream.read(max(_READ, len(self.buffer) - self.position))
        try:
            new = self.decoder.decode(data, final=not data)
        except UnicodeDecodeError as error:
            new = error.object[: error.start].decode("utf-8")
            self.undecoded = len(error.object) - error.start
        self.buffer = self.buffer[self.position :] + new
        self.position = 0
        return bool(data)

    def next(self) -> str:
        """The next character that is no white space, not consumed; empty at the end."""
        while True:
            while self.position < len(self.buffer) and self.buffer[self.position] in " \t\r\n":
                self.position += 1
            if self.position < len(self.buffer):
                return self.buffer[self.position]
            if not self.more():
                return ""

    def value(self, decoder: json.JSONDecoder) -> Any:
        """One JSON value. ValueError where there is none."""
        self.next()
        while True:
            try:
                value, self.position = decoder.raw_decode(self.buffer, self.position)
                return value
            except json.JSONDecodeError as error:
                unfinished = error.msg.startswith("Unterminated") or error.pos > len(self.buffer) - 32
                too_long = len(self.buffer) - self.position > _LONGEST_ITEM
                if not unfinished or too_long or not self.more():
                    raise ValueError(error.msg) from error

    def rest(self) -> int:
        """How many characters are left; those that were not decoded count as bytes."""
        left = len(self.buffer) - self.position + self.undecoded
        while data := self.stream.read(_READ):
            left += len(data)
        return left
