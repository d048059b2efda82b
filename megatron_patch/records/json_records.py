"""Reading JSON records as a stream: JSON Lines and JSON lists, plain, gzip or Zstandard, one file at a time
in memory of a few MiB whatever its size, and of a few times a record's.

The form is told by the first character, not by the name: `[` begins a list, anything else lines. (`.json` is
commonly used for both.) A record longer than allowed is passed over without being held.
"""

from __future__ import annotations

import codecs
import io
import json
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from megatron_patch.errors import UserError
from megatron_patch.records.archives import open_archive

SUFFIXES = (".jsonl", ".json", ".jsonl.zst", ".jsonl.gz", ".json.zst", ".json.gz")
DAMAGED = (EOFError, OSError, zlib.error)  # what reading a damaged archive raises
MEGABYTE = 1_000_000
MAX_DOCUMENT_MB = 64
_BEGINS_JSON = re.compile(rb'\s*(\{\s*["}]|\[\s*[{\]])')
_READ = 1 << 20  # bytes or characters asked for at a time
_SKIPPED = 1 << 17  # characters passed over at a time, each of which takes some 60 bytes meanwhile
_SPACE = re.compile(r"[ \t\r\n]*")
_SCALAR = re.compile(r"[^ \t\r\n,\]]*")


@dataclass(frozen=True)
class Unread:
    """Stands for a record that was passed over. `size`: its bytes or characters."""

    reason: str
    size: int


class BrokenListError(UserError):
    """A JSON list that stops being JSON at item `number` (from 1); `lost` characters from there on cannot be
    read.
    """

    def __init__(self, number: int, reason: str, lost: int) -> None:
        super().__init__(f"item {number}: {reason}; {lost} characters from there to the end cannot be read")
        self.number, self.reason, self.lost = number, reason, lost


def find_files(inputs: Sequence[str | Path]) -> list[Path]:
    """The data files that `inputs` name, folders replaced by their own data files in the order of their
    names.

    Raises UserError for a path that does not exist, a folder without data files, and a file with another
    suffix whose content is no JSON either.
    """
    files: list[Path] = []
    for path in map(Path, inputs):
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.name.endswith(SUFFIXES) and p.is_file())
            if not inside:
                raise UserError(f"{path} holds no data files; put {', '.join(SUFFIXES[:4])} files there.")
            files += inside
        elif not path.is_file():
            raise UserError(f"{path} does not exist; give a data file, or a folder of {', '.join(SUFFIXES[:4])} files.")
        elif not path.name.endswith(SUFFIXES) and not holds_json(path):
            raise UserError(
                f"{path} has no suffix that is read, and does not begin as JSON does; "
                f"name it {', '.join(SUFFIXES[:4])} after its form."
            )
        else:
            files.append(path)
    return files


def open_stream(path: Path) -> io.BufferedReader:
    """The file's uncompressed bytes, without a byte-order mark. Reading a damaged archive raises one of
    DAMAGED.
    """
    packed = path.name.endswith((".gz", ".zst"))
    raw = open_archive(path) if packed else open(path, "rb", buffering=0)  # noqa: SIM115
    stream: io.BufferedReader = io.BufferedReader(raw, _READ)
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


def too_long(longest: int) -> str:
    """The reason of a record of more than `longest` bytes."""
    return f"it is longer than the {longest / MEGABYTE:g} MB that --max-document-mb allows"


def list_items(stream: BinaryIO, longest: int) -> Iterator[tuple[int, Any, int]]:
    """(item number from 1, value, characters) of a JSON list. The value is an Unread for an item of more than `longest` bytes,
    nested too deeply, or with a number of thousands of digits. Raises BrokenListError where the list stops being one.
    """
    text = _Text(stream, longest)
    if text.next() != "[":
        raise BrokenListError(1, "a list should begin with '['", text.rest())
    text.position += 1
    number = 0
    while True:
        number += 1
        try:
            if number == 1 and text.next() == "]":
                break
            yield number, *text.item()
            separator = text.next()
            if separator == "]":
                break
            if separator != ",":
                raise UserError(f"',' or ']' should follow it, not {separator!r}" if separator else "the file ends early")
            text.position += 1
        except UserError as error:
            raise BrokenListError(number, str(error), text.rest()) from error
    text.position += 1
    if text.next():
        raise BrokenListError(number + 1, "something follows the list's closing ']'", text.rest())


def require_unicode(text: str) -> str:
    """`text`, which JSON's escapes can give half of a surrogate pair. UserError, one phrase, where they did."""
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            raise UserError("it holds half of a surrogate pair, which is no character") from None
    return text


def _end(pattern: re.Pattern[str], text: str, position: int) -> int:
    """Where `pattern` ends that begins at `position`; it is one that also matches nothing."""
    match = pattern.match(text, position)
    assert match is not None
    return match.end()


class _UnreadableError(UserError):
    """An item that cannot be held, or that Python cannot convert."""


class _Text:
    """A window over a stream's text, at which JSON values are read one by one."""

    def __init__(self, stream: BinaryIO, longest: int) -> None:
        self.stream, self.longest, self.decoder = stream, longest, codecs.getincrementaldecoder("utf-8")()
        self.buffer, self.position, self.undecoded = "", 0, 0
        self.json = json.JSONDecoder()

    def more(self) -> bool:
        """Read on, about as much as is waiting (so that a long value is parsed a logarithmic number of times), and not much
        more than may be held.

        Text before bytes that are not UTF-8 is still given; the call after that raises UserError.
        """
        if self.undecoded:
            raise UserError("bytes that are not UTF-8")
        waiting = len(self.buffer) - self.position
        data = self.stream.read(max(_READ, min(waiting, self.longest - waiting)))
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
            self.position = _end(_SPACE, self.buffer, self.position)
            if self.position < len(self.buffer):
                return self.buffer[self.position]
            if not self.more():
                return ""

    def item(self) -> tuple[Any, int]:
        """One JSON value and its characters; an Unread for one that cannot be held. UserError where there is none."""
        self.next()
        try:
            return self._value()
        except json.JSONDecodeError as error:
            raise UserError(error.msg) from error
        except RecursionError:
            reason = "it is nested too deeply"
        except UserError as error:
            reason = str(error)
        size = self._skip()
        return Unread(reason, size), size

    def _value(self) -> tuple[Any, int]:
        while True:
            try:
                value, end = self.json.raw_decode(self.buffer, self.position)
            except json.JSONDecodeError as error:
                unfinished = error.msg.startswith("Unterminated") or error.pos > len(self.buffer) - 32
                if unfinished and len(self.buffer) - self.position > self.longest:
                    raise _UnreadableError(too_long(self.longest)) from None
                if not unfinished or not self.more():
                    raise
                continue
            except ValueError as error:  # an integer of more digits than Python converts
                raise _UnreadableError(str(error)) from None
            size = end - self.position
            # A number at the window's end may go on behind it: 12 of 123, 1 of 1e5. (`more` begins the window at the value.)
            if isinstance(value, (int, float)) and end > len(self.buffer) - 3 and self.more():
                continue
            if 4 * size > self.longest and len(self.buffer[self.position : self.position + size].encode()) > self.longest:
                raise _UnreadableError(too_long(self.longest))
            self.position += size
            return value, size

    def _skip(self) -> int:
        """Pass over a JSON value by its quotes and brackets alone, in windows; how many characters it had.

        UserError where the text ends within it.
        """
        if self.buffer[self.position] not in '"[{':  # a number
            end = _end(_SCALAR, self.buffer, self.position)
            size, self.position = end - self.position, end
            return size
        depth, inside, size = 0, 0, 0
        while True:
            window = self.buffer[self.position : self.position + _SKIPPED]
            if (len(window) - len(window.rstrip("\\"))) % 2:
                window = window[:-1]  # what this backslash escapes is the next window's
            if not window:
                if not self.more():
                    raise UserError("the file ends early")
                continue
            depths, insides = _structure(window, depth, inside)
            ends = np.flatnonzero((depths <= 0) & (insides == 0))
            taken = int(ends[0]) + 1 if ends.size else len(window)
            self.position += taken
            size += taken
            if ends.size:
                return size
            depth, inside = int(depths[-1]), int(insides[-1])

    def rest(self) -> int:
        """How many characters are left; those that were not decoded count as bytes."""
        left = len(self.buffer) - self.position + self.undecoded
        while data := self.stream.read(_READ):
            left += len(data)
        return left


def _structure(window: str, depth: int, inside: int) -> tuple[np.ndarray, np.ndarray]:
    """Behind each character of a JSON text, int64 [n] each: how many brackets are open, and whether a string is (1) or not (0).
    `depth` and `inside`: before the first. No escape may begin before the window or end behind it.
    """
    plain = window.replace("\\\\", "  ").replace('\\"', "  ")
    characters = np.frombuffer(plain.encode("ascii", "replace"), dtype=np.uint8)
    insides = (np.cumsum(characters == ord('"')) + inside) & 1
    opens = (characters == ord("[")) | (characters == ord("{"))
    closes = (characters == ord("]")) | (characters == ord("}"))
    steps = (opens.astype(np.int64) - closes) * (insides == 0)
    return np.cumsum(steps) + depth, insides
