"""Texts on which two tokenizers are compared: each piece of the vocabulary, code, prose, and what is rare.

They are made of what every installation has, and are the same each time. None begins with a space (see
`tokenizer_json`).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path

from megatron_patch.data.tokenizer import Tokenizer

_PIECES = 100  # a text
_CUT, _SOURCES = 1_000, 80_000  # characters of a text of code, and of all of them
_LONGEST_RUN = 40
_SPACES = " ▁"


def texts(tokenizer: Tokenizer) -> list[str]:
    """Texts without a special token's literal."""
    literals = [literal for literal in tokenizer.special_tokens if literal]
    found = (text.lstrip(_SPACES) for text in (*_of_pieces(tokenizer), *_sources(), *_runs(), *_rare()))
    return [text for text in found if text and not any(literal in text for literal in literals)]


def texts_with_literals(tokenizer: Tokenizer) -> list[str]:
    """Texts around each special token: alone, beside words and spaces, and beside itself."""
    forms = ("{0}", "{0}word", "word{0}word", "word {0} word", "a\n{0}\nb", "{0}{0} word{0}")
    return [form.format(literal) for literal in tokenizer.special_tokens if literal for form in forms]


def shortened(text: str, holds: Callable[[str], bool]) -> str:
    """A part of `text` for which `holds` is true as well, and of which no half, quarter, … or character can go."""
    size = len(text) // 2
    while size:
        for start in range(0, len(text), size):
            part = (text[:start] + text[start + size :]).lstrip(_SPACES)
            if part and holds(part):
                text = part
                break
        else:
            size //= 2
        size = min(size, len(text) // 2)
    return text


def _of_pieces(tokenizer: Tokenizer) -> Iterator[str]:
    """Pieces of the vocabulary in two random orders: all its scripts, and borders where words have none."""
    shuffle = random.Random(2023).sample
    special = set(tokenizer.special_tokens.values())
    pieces = [tokenizer.detokenize([i, i])[1:] or " " for i in range(tokenizer.vocab_size) if i not in special]
    for _ in range(2):
        order = shuffle(pieces, len(pieces))
        yield from ("".join(order[start : start + _PIECES]) for start in range(0, len(order), _PIECES))


def _sources() -> Iterator[str]:
    """This project's own code, with English prose, and its Chinese sentences."""
    folder = Path(__file__).parents[1]
    files = [*sorted((folder / "language").glob("zh_*.py")), *sorted(folder.glob("[!l]*/*.py"))]
    left = _SOURCES
    for path in files:
        text = path.read_text(encoding="utf-8")
        # Short pieces of it, so that texts begin in all places.
        yield from (text[start : start + _CUT] for start in range(0, min(len(text), left), _CUT))
        left -= len(text)
        if left <= 0:
            return


def _runs() -> Iterator[str]:
    """One character many times, within a text, as its end, and before an indented line."""
    for run in (letter * length for letter in (" ", "\t", "\n", "\r\n", "_", "0") for length in range(1, _LONGEST_RUN)):
        yield from (f"x{run}y", f"x{run}", f"if x:\n{run}y = 1  # {run}z")


def _rare() -> Iterator[str]:
    """Characters of every plane of Unicode, which most vocabularies write in bytes."""
    pick = random.Random(2023).randrange
    for highest in (0x80, 0x3000, 0xD800, 0x20000, 0x110000):
        numbers = (pick(1, highest) for _ in range(300))
        yield "".join(chr(number) for number in numbers if not 0xD800 <= number < 0xE000)
    yield "日本語カナ 😀 e\u0301 \u00a0\u3000\u200b\ufeff \u0000 \u2028 naïve ﬁ ① Å"
