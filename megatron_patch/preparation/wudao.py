"""WuDao's raw form: the original's cleaning of a text."""

from __future__ import annotations

import re
from collections.abc import Callable

_URL = re.compile(r"https?://[!$-_a-z]+")  # $ to _ spans the digits, the capitals and a URL's punctuation
_SPACES = re.compile(" +")
_PUNCTUATION = " .,-%*/&!()+" + "，。《》•、＆—（）：？！“”·"
_NOT_KEPT = re.compile(f"[^0-9A-Za-z一-龥{re.escape(_PUNCTUATION)}]+")


def clean_wudao(text: str) -> str:
    """The original's cleaning: http(s) URLs out, runs of spaces to one, then everything out that is not a
    digit, a Latin letter, a common Chinese character or one of its few punctuation marks; outer white space
    out.

    It removes `?`, `;`, line ends, emoji, accented letters and every other script: meant for Chinese web text
    only.
    """
    return _NOT_KEPT.sub("", _SPACES.sub(" ", _URL.sub("", text))).strip()


CLEANERS: dict[str, Callable[[str], str] | None] = {"none": None, "wudao": clean_wudao}
