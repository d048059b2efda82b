"""A JSON list read item by item from a stream, in memory of a few MiB and of a few times one item.

Python's own parser wants the whole text. Here a window moves over the text, and Python's parser reads one item at a
time in it.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np

from megatron_patch.errors import UserError
from megatron_patch.records.skipped import Unread, too_long

_READ = 1 << 20  # bytes or characters asked for at a time
_SKIPPED = 1 << 17  # characters passed over at a time; each takes some 60 bytes while its brackets are counted
_SPACE = re.compile(r"[ \t\r\n]*")
_SCALAR = re.compile(r"[^ \t\r\n,\]]*")


class BrokenListError(UserError):
    """A JSON list stops being JSON.

    Attributes:
        number: the item at which it stops, from 1.
        reason: a phrase.
        lost: how many characters from there to the end cannot be read.
    """

    def __init__(self, number: int, reason: str, lost: int) -> None:
        super().__init__(f"item {number}: {reason}; {lost} characters from there to the end cannot be read")
        self.number, self.reason, self.lost = number, reason, lost


def list_items(stream: BinaryIO, longest: int) -> Iterator[tuple[int, Any, int]]:
    """(item number from 1, value, characters of the text) for each item of a JSON list.

    The value is an Unread if the item has more than `longest` bytes, is nested too deeply, or holds a number of
    thousands of digits, which Python does not convert.

    Raises:
        BrokenListError: the text stops being a list.
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


def _end(pattern: re.Pattern[str], text: str, position: int) -> int:
    """Where `pattern`'s match at `position` ends. The pattern must be one that also matches an empty text."""
    match = pattern.match(text, position)
    assert match is not None
    return match.end()


class _UnreadableError(UserError):
    """An item is too long to be held, or Python cannot convert it."""


class _Text:
    """A window over a stream's text. `position` is where the next value begins in it."""

    def __init__(self, stream: BinaryIO, longest: int) -> None:
        self.stream, self.longest, self.decoder = stream, longest, codecs.getincrementaldecoder("utf-8")()
        self.buffer, self.position, self.undecoded = "", 0, 0
        self.json = json.JSONDecoder()

    def more(self) -> bool:
        """Read more text into the window; what lies before `position` is dropped. Returns False at the stream's end.

        Reads about as much as is waiting in the window. So the window doubles while a long value does not fit, and the
        value is parsed a logarithmic number of times. It never reads much more than may be held.

        Raises:
            UserError: an earlier call met bytes that are not UTF-8. That call still gave the text before them.
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
        """The next character that is no white space; `position` moves to it. Empty at the stream's end."""
        while True:
            self.position = _end(_SPACE, self.buffer, self.position)
            if self.position < len(self.buffer):
                return self.buffer[self.position]
            if not self.more():
                return ""

    def item(self) -> tuple[Any, int]:
        """Take one JSON value. Returns it and its number of characters; an Unread for a value that cannot be held.

        Raises:
            UserError: there is no JSON value here.
        """
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
        """Parse the value at `position`, reading on until it is whole.

        Raises:
            json.JSONDecodeError: there is no JSON value here.
            _UnreadableError: the value is too long, or holds a number that Python does not convert.
        """
        while True:
            try:
                value, end = self.json.raw_decode(self.buffer, self.position)
            except json.JSONDecodeError as error:
                # An error near the window's end may only mean that the value goes on behind it.
                unfinished = error.msg.startswith("Unterminated") or error.pos > len(self.buffer) - 32
                if unfinished and len(self.buffer) - self.position > self.longest:
                    raise _UnreadableError(too_long(self.longest)) from None
                if not unfinished or not self.more():
                    raise
                continue
            except ValueError as error:  # an integer of more digits than Python converts
                raise _UnreadableError(str(error)) from None
            size = end - self.position
            # A number at the window's end may go on behind it: 12 of 123, 1 of 1e5. `more` moves the value to the
            # window's beginning, so it is parsed again from there.
            if isinstance(value, (int, float)) and end > len(self.buffer) - 3 and self.more():
                continue
            # A character takes at most 4 bytes, so only a long text is encoded to be measured.
            if 4 * size > self.longest and len(self.buffer[self.position : self.position + size].encode()) > self.longest:
                raise _UnreadableError(too_long(self.longest))
            self.position += size
            return value, size

    def _skip(self) -> int:
        """Pass over a JSON value, counting only quotes and brackets. Returns its number of characters.

        Raises:
            UserError: the text ends within the value.
        """
        if self.buffer[self.position] not in '"[{':  # a number
            end = _end(_SCALAR, self.buffer, self.position)
            size, self.position = end - self.position, end
            return size
        depth, inside, size = 0, 0, 0
        while True:
            window = self.buffer[self.position : self.position + _SKIPPED]
            if (len(window) - len(window.rstrip("\\"))) % 2:
                window = window[:-1]  # the character that this backslash escapes lies in the next window
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
        """Read to the stream's end. Returns the number of characters left; what was not decoded counts as bytes."""
        left = len(self.buffer) - self.position + self.undecoded
        while data := self.stream.read(_READ):
            left += len(data)
        return left


def _structure(window: str, depth: int, inside: int) -> tuple[np.ndarray, np.ndarray]:
    """The state behind each character of a JSON text, as two int64 [n]: open brackets, and 1 inside a string or else 0.

    Args:
        window: n characters. No escape may begin before it or end behind it.
        depth, inside: the same two numbers before the first character.
    """
    plain = window.replace("\\\\", "  ").replace('\\"', "  ")
    characters = np.frombuffer(plain.encode("ascii", "replace"), dtype=np.uint8)
    insides = (np.cumsum(characters == ord('"')) + inside) & 1
    opens = (characters == ord("[")) | (characters == ord("{"))
    closes = (characters == ord("]")) | (characters == ord("}"))
    steps = (opens.astype(np.int64) - closes) * (insides == 0)
    return np.cumsum(steps) + depth, insides
