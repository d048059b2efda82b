"""WuDao's raw form: the original's cleaning of a text."""

from __future__ import annotations

import re
from collections.abc import Callable

_URL = re.compile(r"https?://[!$-_a-z]+")  # $ to _ spans the digits, the capitals and a URL's punctuation
_SPACES = re.compile(" +")
_PUNCTUATION = " .,-%*/&!()+" + "，。《》•、＆—（）：？！“”·"
_NOT_KEPT = re.compile(f"[^0-9A-Za-z一-龥{re.escape(_PUNCTUATION)}]+")


def clean_wudao(text: str) -> str:
    """The original's cleaning of a text.

    It removes http(s) URLs, makes one space of several, and then removes every character but digits, Latin letters,
    common Chinese characters and a few punctuation marks. White space at both ends goes too.

    So it removes `?`, `;`, line ends, emoji, accented letters and every other script. It is meant for Chinese web text
    only.
    """
    return _NOT_KEPT.sub("", _SPACES.sub(" ", _URL.sub("", text))).strip()


CLEANERS: dict[str, Callable[[str], str] | None] = {"none": None, "wudao": clean_wudao}
