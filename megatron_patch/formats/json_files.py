"""Reading the JSON files that describe models, tokenizers and runs: one object each, numbers of the right kind. Imports no torch.

Python's own reader raises RecursionError for deep nesting, a ValueError that names nothing for numbers of more than 4,300 digits,
and takes half of a surrogate pair, which fails where it is written again. Here each is a sentence with the file in it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard

from megatron_patch.errors import UserError

_MOST_BYTES = 64 << 20  # of a description; tokenizer.json, the largest, has a few MB


def json_object(path: str | Path, most_bytes: int = _MOST_BYTES) -> dict[str, Any]:
    """The one JSON object in a file.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: it is no JSON, no object, nested too deeply, or larger than a description is.
    """
    path = Path(path)
    if path.stat().st_size > most_bytes:
        raise UserError(f"{path} has {path.stat().st_size} bytes, more than {most_bytes}; copy the right file there.")
    try:
        content = json.loads(path.read_bytes().decode("utf-8"))
        json.dumps(content, ensure_ascii=False).encode("utf-8")  # finds halves of surrogate pairs
    except RecursionError:
        raise UserError(f"{path} is nested too deeply; copy the right file there.") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no JSON: it is not UTF-8 (byte {error.start}); copy the right file there.") from None
    except UnicodeEncodeError:
        raise UserError(f"{path} holds half of a surrogate pair, which is no character; copy the right file there.") from None
    except ValueError as error:
        raise UserError(f"{path} is no JSON: {one_line(error)}; copy the right file there.") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}; it must be one JSON object: copy the right file there.")
    return content


def one_line(value: object, most: int = 200) -> str:
    """A value or a message as it can stand in a sentence: one line, not too long, its control characters written out."""
    text = str(value)
    text = text if len(text) <= most else f"{text[:most]}… ({len(text)} characters)"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def is_whole_number(value: object) -> TypeGuard[int]:
    """An int that is no bool; JSON's true is not 1."""
    return isinstance(value, int) and not isinstance(value, bool)


def whole_in(content: Mapping[str, Any], key: str, least: int, most: int) -> int:
    """`content[key]`, which must be there.

    Raises:
        UserError: it is no whole number from `least` to `most`; the sentence names the key.
    """
    value = content[key]
    if not is_whole_number(value) or not least <= value <= most:
        raise UserError(f"{key} is {shown(value)}; it must be a whole number from {least} to {most}")
    return value


def finite_in(content: Mapping[str, Any], key: str, least: float, most: float) -> float:
    """`content[key]`, which must be there.

    Raises:
        UserError: it is no number above `least` and up to `most`; the sentence names the key.
    """
    value = content[key]
    number = is_whole_number(value) or isinstance(value, float)
    if not number or not least < value <= most or not math.isfinite(value):
        raise UserError(f"{key} is {shown(value)}; it must be a number above {least:g}, at most {most:g}")
    return float(value)


def shown(value: object) -> str:
    """A value of a file in a sentence: JSON's spelling where it is short, else only what it is."""
    if is_whole_number(value) and abs(value) >= 10**30:
        return "a number of more than 30 digits"
    if isinstance(value, (dict, list)):
        return f"a {type(value).__name__}"
    return one_line(repr(value), 60)
