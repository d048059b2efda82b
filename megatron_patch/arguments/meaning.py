"""What was probably meant by a text that is not written as its argument takes it: `1e8` for 100000000, `yes` for true.

Only used to say what to write. A command never runs with a guess. Imports no torch.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from decimal import Decimal

from megatron_patch.formats.typed import MOST_DIGITS, number, whole_number

_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]{1,3})?", re.IGNORECASE)
_DASHES = str.maketrans({dash: "-" for dash in "\u2010\u2011\u2012\u2013\u2014\u2212"})
_SYNONYMS = {
    "yes": "true", "on": "true", "1": "true", "t": "true", "y": "true",
    "no": "false", "off": "false", "0": "false", "f": "false", "n": "false",
    "bfloat16": "bf16", "float16": "fp16", "half": "fp16", "float32": "fp32", "float": "fp32",
    "fp16": "float16", "bf16": "bfloat16", "fp32": "float32", "selective": "sel",
}  # fmt: skip


def meant_whole(text: str) -> int | None:
    """The whole number that `1e8`, ` 2048 `, `1_000`, `1,000`, `+8`, `8.0` or another script's digits mean, or None."""
    plain = re.sub("(?<=[0-9])[_,](?=[0-9]{3})", "", _plain(text))
    if len(plain) > 40 or not _NUMBER.fullmatch(plain):
        return None
    value = Decimal(plain)
    if value < 0 or value >= 10**MOST_DIGITS or value != value.to_integral_value():
        return None
    return int(value)


def meant_number(text: str) -> str | None:
    """The number in its usual form, without blanks, other dashes and digits of other scripts; None if it is not one."""
    plain = _plain(text)
    return plain if number(plain) is not None else None


def meant_choice(text: str, choices: Iterable[str]) -> str | None:
    """The choice that differs from `text` in blanks, quotes or capitals, or that means the same; None without one."""
    plain = _plain(text).strip("'\"").casefold()
    by_name = {choice.casefold(): choice for choice in choices}
    return by_name.get(plain) or by_name.get(_SYNONYMS.get(plain, plain))


def meant_size(text: str) -> str | None:
    """`5GB` for `5G`, `5 gbytes` or `5.0GB`; None if it is not a size."""
    match = re.fullmatch(r"([0-9]+)(?:\.0+)? *([kmg])(i?)(?:b|bytes?)?", _plain(text).casefold())
    if not match or whole_number(match[1]) in (None, 0):
        return None
    return f"{match[1]}{match[2].upper()}{match[3]}B"


def _plain(text: str) -> str:
    """Compatibility forms (full width, circled) as their usual characters, without the blanks and line ends around."""
    plain = unicodedata.normalize("NFKC", text).translate(_DASHES).strip()
    return "".join(str(unicodedata.digit(c)) if c.isdigit() and not c.isascii() else c for c in plain)
