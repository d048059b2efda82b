"""The JSON files that describe models, tokenizers and runs: one object each, with numbers of the right kind. Imports no
torch.

Python's reader raises RecursionError for deep nesting. For a number of more than 4,300 digits it raises a ValueError
that names no file. It accepts half of a surrogate pair, which fails only when it is written again. Here each of these
is a sentence that names the file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard

from megatron_patch.errors import UserError, naming

_MOST_BYTES = 64 << 20  # of one file; the largest kind, tokenizer.json, has a few MB


def json_object(path: str | Path, most_bytes: int = _MOST_BYTES) -> dict[str, Any]:
    """The JSON object that a file holds.

    Raises:
        OSError: there is no such file, or it cannot be read. It names the file.
        UserError: it is not JSON, not an object, nested too deeply, or larger than `most_bytes`.
    """
    path = Path(path)
    if path.stat().st_size > most_bytes:
        raise UserError(f"{path} has {path.stat().st_size} bytes, more than {most_bytes}; copy the right file there.")
    try:
        with naming(path):
            data = path.read_bytes()
        content = json.loads(data.decode("utf-8"))
        json.dumps(content, ensure_ascii=False).encode("utf-8")  # raises for half of a surrogate pair
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
    """A value or a message for a sentence: on one line, of up to `most` characters, control characters escaped."""
    text = str(value)
    text = text if len(text) <= most else f"{text[:most]}… ({len(text)} characters)"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def is_whole_number(value: object) -> TypeGuard[int]:
    """Whether `value` is an int and not a bool: JSON's true is not 1."""
    return isinstance(value, int) and not isinstance(value, bool)


def whole_in(content: Mapping[str, Any], key: str, least: int, most: int) -> int:
    """`content[key]` as a whole number; the key must be there.

    Raises:
        UserError: it is not a whole number from `least` to `most`. The sentence names the key.
    """
    value = content[key]
    if not is_whole_number(value) or not least <= value <= most:
        raise UserError(f"{key} is {shown(value)}; it must be a whole number from {least} to {most}")
    return value


def finite_in(content: Mapping[str, Any], key: str, least: float, most: float) -> float:
    """`content[key]` as a float; the key must be there.

    Raises:
        UserError: it is not a finite number above `least`, at most `most`. The sentence names the key.
    """
    value = content[key]
    number = is_whole_number(value) or isinstance(value, float)
    if not number or not least < value <= most or not math.isfinite(value):
        raise UserError(f"{key} is {shown(value)}; it must be a number above {least:g}, at most {most:g}")
    return float(value)


def shown(value: object) -> str:
    """A value of a file, ready for a sentence: the value itself if it is short, otherwise what kind of value it is."""
    if is_whole_number(value) and abs(value) >= 10**30:
        return "a number of more than 30 digits"
    if isinstance(value, (dict, list)):
        return f"a {type(value).__name__}"
    return one_line(repr(value), 60)
