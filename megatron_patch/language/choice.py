"""Which language the user reads: `--language`, else the locale that the shell names. Imports no torch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Literal

Language = Literal["en", "zh"]
LANGUAGES: tuple[Language, ...] = ("en", "zh")

_asked: list[Language] = []  # by --language of this process


def ask(language: Language | None) -> None:
    """Speak this language from now on, whatever the locale is; None: the locale's."""
    _asked[:] = [] if language is None else [language]


def spoken(environ: Mapping[str, str] | None = None) -> Language:
    """`--language`'s, else Chinese where the locale of messages is, else English.

    The locale is the first of LC_ALL, LC_MESSAGES and LANG that is set, as POSIX has it.
    """
    if _asked:
        return _asked[0]
    environ = os.environ if environ is None else environ
    locale = next((environ[name] for name in ("LC_ALL", "LC_MESSAGES", "LANG") if environ.get(name)), "")
    return "zh" if locale.lower().startswith("zh") else "en"
