"""The text of each record in a chunk, for preparation: parsed, taken by its key, cleaned."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

from megatron_patch.errors import UserError
from megatron_patch.records.chunks import Chunk
from megatron_patch.records.skipped import Skipped


def texts_of(
    chunk: Chunk, keys: Sequence[str], clean: Callable[[str], str] | None, joined: bool = False
) -> tuple[list[tuple[int, str]], list[Skipped]]:
    """The texts of a chunk's records, and the records that give none.

    Args:
        keys: a record's text is the value of the first of these keys that it has.
        clean: changes each text; None leaves it.
        joined: the text is made of the values of all keys instead, a line end between them. Keys that a record lacks,
            or that are null or empty, are passed over; it must have one of them.

    Returns:
        (record number, text) pairs in order; then what was skipped, with the chunk's blank lines and what it lost.
    """
    texts, skipped = [], []
    if chunk.blank:
        skipped.append(Skipped(chunk.first, "it is empty", empty=True, records=chunk.blank))
    for number, record in enumerate(chunk.records, start=chunk.first):
        try:
            parts = _quick_parts(record, keys, joined) or _parts(record, keys, joined)
            text = "\n".join(filter(None, map(clean, parts) if clean else parts))
        except (UserError, RecursionError) as error:
            skipped.append(Skipped(number, str(error)))
            continue
        if text:
            texts.append((number, text))
        elif not parts and skipped and skipped[-1].empty and skipped[-1].number + skipped[-1].records == number:
            # Blank lines in a row are one line of the report.
            skipped[-1] = replace(skipped[-1], records=skipped[-1].records + 1)
        else:
            skipped.append(Skipped(number, "it is empty", empty=True))
    return texts, skipped + ([chunk.lost] if chunk.lost else [])


@cache
def _orjson() -> Any:
    """The library orjson, which parses several times as fast as Python does; None where it is not installed."""
    try:
        import orjson
    except ImportError:
        return None
    return orjson


def _quick_parts(record: Any, keys: Sequence[str], joined: bool) -> list[str] | None:
    """The texts of a line as orjson parses it; None where `_parts` must say what the line is.

    orjson and Python differ in what is no text: orjson refuses NaN, halves of surrogate pairs, numbers beyond a double
    and bytes that are not UTF-8, and gives an integer beyond 64 bits as a float. For the first of two equal keys both
    take the last value.
    """
    if not isinstance(record, bytes) or (library := _orjson()) is None:
        return None
    try:
        parsed = library.loads(record)
    except ValueError:
        return None
    if not isinstance(parsed, dict):
        return None
    found = [parsed[key] for key in keys if key in parsed]
    parts = [text for text in found if text is not None] if joined else found[:1]
    return parts if all(isinstance(text, str) for text in parts) else None


def _parts(record: Any, keys: Sequence[str], joined: bool) -> list[str]:
    """The texts that a record's text is made of; none for a blank line.

    Raises:
        UserError: one phrase: the record is no JSON object, has none of the keys, or a text is not Unicode.
    """
    if isinstance(record, bytes):
        record = record.strip()
        if not record:
            return []
        try:
            record = json.loads(record)
        except UnicodeDecodeError:
            raise UserError("it is not UTF-8") from None
        except ValueError as error:
            raise UserError(f"it is no JSON: {error}") from None
    if not isinstance(record, dict):
        raise UserError(f"it is a {type(record).__name__}, not an object")
    there = [key for key in keys if key in record]
    if not there:
        raise UserError(f"it lacks the key {' or '.join(map(repr, keys))}")
    parts = []
    for key in there if joined else there[:1]:
        if joined and record[key] is None:
            continue
        if not isinstance(record[key], str):
            raise UserError(f"its {key!r} is {type(record[key]).__name__}, not a text")
        parts.append(require_unicode(record[key]))
    return parts


def require_unicode(text: str) -> str:
    r"""Return `text`, which came out of JSON. An escape such as `\ud83d` alone gives half of a character.

    Raises:
        UserError: one phrase: the text holds half of a surrogate pair.
    """
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            raise UserError("it holds half of a surrogate pair, which is no character") from None
    return text
