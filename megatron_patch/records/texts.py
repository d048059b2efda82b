"""The text of each record in a chunk, for preparation: parsed, taken by its key, cleaned."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from megatron_patch.errors import UserError
from megatron_patch.records.chunks import Chunk
from megatron_patch.records.skipped import Skipped


def texts_of(
    chunk: Chunk, keys: Sequence[str], clean: Callable[[str], str] | None
) -> tuple[list[tuple[int, str]], list[Skipped]]:
    """The texts of a chunk's records, and the records that give none.

    Args:
        keys: a record's text is the value of the first of these keys that it has.
        clean: changes each text; None leaves it.

    Returns:
        (record number, text) pairs in order; then what was skipped, with the chunk's blank lines and what it lost.
    """
    texts, skipped = [], []
    if chunk.blank:
        skipped.append(Skipped(chunk.first, "it is empty", empty=True, records=chunk.blank))
    for number, record in enumerate(chunk.records, start=chunk.first):
        try:
            text = _text_of(record, keys)
            text = clean(text) if clean else text
        except (UserError, RecursionError) as error:
            skipped.append(Skipped(number, str(error)))
            continue
        if text:
            texts.append((number, text))
        else:
            skipped.append(Skipped(number, "it is empty", empty=True))
    return texts, skipped + ([chunk.lost] if chunk.lost else [])


def _text_of(record: Any, keys: Sequence[str]) -> str:
    """A record's text; empty for a blank line.

    Raises:
        UserError: one phrase: the record is no JSON object, has none of the keys, or its text is not Unicode.
    """
    if isinstance(record, bytes):
        record = record.strip()
        if not record:
            return ""
        try:
            record = json.loads(record)
        except UnicodeDecodeError:
            raise UserError("it is not UTF-8") from None
        except ValueError as error:
            raise UserError(f"it is no JSON: {error}") from None
    if not isinstance(record, dict):
        raise UserError(f"it is a {type(record).__name__}, not an object")
    for key in keys:
        if key in record:
            text = record[key]
            if not isinstance(text, str):
                raise UserError(f"its {key!r} is {type(text).__name__}, not a text")
            return require_unicode(text)
    raise UserError(f"it lacks the key {' or '.join(map(repr, keys))}")


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
