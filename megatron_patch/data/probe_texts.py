"""The texts on which a tokenizer is compared with another that should read alike, before it is used or written.

They are made of what every installation has, and are the same each time.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

from megatron_patch.data.tokenizer import Tokenizer

_MOST_PIECES = 1 << 15  # of a larger vocabulary, evenly spread ones are taken
_SINGLE_PIECES = 1024
_MIXED = 1500
_CUT, _SOURCES = 1_000, 80_000  # characters of a text of code, and of all of them
_SPACES = 160  # the longest run of spaces; the longest piece of LLaMA's vocabulary holds 16

# First character of each block: scripts, symbols, presentation forms, planes beyond the first.
_BLOCKS = (
    0xA0, 0x100, 0x180, 0x250, 0x2B0, 0x300, 0x370, 0x400, 0x530, 0x590, 0x600, 0x700, 0x780, 0x900, 0x980, 0xA00, 0xA80, 0xB00,
    0xB80, 0xC00, 0xC80, 0xD00, 0xD80, 0xE00, 0xE80, 0xF00, 0x1000, 0x10A0, 0x1100, 0x1200, 0x13A0, 0x1680, 0x1780, 0x1800,
    0x1E00, 0x1F00, 0x2000, 0x2070, 0x20A0, 0x2100, 0x2190, 0x2200, 0x2300, 0x2460, 0x2500, 0x25A0, 0x2600, 0x2700, 0x2800,
    0x2C00, 0x2E80, 0x3000, 0x3040, 0x30A0, 0x3100, 0x31F0, 0x3400, 0x4E00, 0x5B57, 0x6C49, 0x8BCD, 0x9F8D, 0xA000, 0xA960,
    0xAC00, 0xD55C, 0xE000, 0xF900, 0xFB50, 0xFE00, 0xFE70, 0xFF00, 0xFFF0, 0x10000, 0x10330, 0x12000, 0x1D400, 0x1F1E6,
    0x1F300, 0x1F600, 0x1F900, 0x20000, 0x2F800, 0xE0000, 0xF0000, 0x10FFF0,
)  # fmt: skip
_JOINED = (
    "👨‍👩‍👧‍👦", "👍🏽", "🏳️‍🌈", "🇨🇳🇬🇧", "1️⃣", "e\u0301\u0323", "क्षि", "각\u1100\u1161", "\u202eabc\u202c",
    "a\u200bb\u200cc\u200dd\ufeff", "ﬁ½Ⅷ",
)  # fmt: skip
_WORDS = (
    "the", "of", "tokenizer", "def", "return", "self.", "语言", "模型", "。", "，", "это", "الكلمة", "שלום", "한국어", "日本語の",
    "12345", "3.14e-10", "http://a.b/c?d=e&f", "café", "naïve", "İstanbul", "ß", "DON'T", "don’t", "…", "—", "“”", "\\n",
    '{"a": [1, 2]}', "</div>", "#!/bin/sh", "0x7f", "^_^", "A" * 40, "ab" * 30, "=" * 75,
)  # fmt: skip
_BETWEEN = (
    "", "", " ", " ", " ", "  ", "    ", "\n", "\n\n", "\t", "\r\n", "▁", "▁▁", "\u3000", "\u00a0", "\0", "\x7f", "\x1b[0m",
)  # fmt: skip


def probe_texts(tokenizer: Tokenizer) -> list[str]:
    """Some thousand texts: spaces, all kinds of characters, special tokens, pieces, code and mixtures."""
    pieces = _pieces(tokenizer)
    literals = [*tokenizer.special_tokens, "<0x0A>", "<0xE4>", "<s>", "</s>", "<unk>", "<pad>", "[INST]", "<|im_end|>"]
    return [*_runs(), *_characters(), *_literals(literals), *_vocabulary(pieces), *_sources(), *_mixed(pieces, literals)]


def _pieces(tokenizer: Tokenizer) -> list[str]:
    """What pieces of the vocabulary stand for; those of bytes and special tokens stand for nothing alone."""
    step = max(1, tokenizer.vocab_size // _MOST_PIECES)
    return [text for i in range(0, tokenizer.vocab_size, step) if (text := tokenizer.detokenize([i])) and "\ufffd" not in text]


def _runs() -> Iterator[str]:
    """Runs of spaces, line ends, tabs and ▁, between other characters and at a text's ends."""
    yield ""
    for length in range(1, _SPACES):
        spaces = " " * length
        yield from (spaces, f"a{spaces}b", f"\n{spaces}return", f"{spaces}的{spaces}")
    for length in (1, 2, 3, 5, 8, 16, 17, 40):
        yield from (character * length for character in "\n\t\r▁\u3000\u00a0-=.0")
        yield "a" + "\n" * length + " b" + " \n" * length


def _characters() -> Iterator[str]:
    """Each of the first 256 characters alone and within a word, and sixteen of each block alone and in a row."""
    for code in range(256):
        yield from (chr(code), f"x{chr(code)}y {chr(code)}")
    for begin in _BLOCKS:
        row = [chr(code) for code in range(begin, begin + 16)]
        yield from ("".join(row), " ".join(row), row[3] + row[3] + "a" + row[5])
    yield from _JOINED


def _literals(literals: list[str]) -> Iterator[str]:
    """Special tokens' literals, alone, within texts and beside each other."""
    for literal in literals:
        yield from (literal, f"a{literal}b", f" {literal} ", f"{literal}{literal}x", literal[:-1], f"\n{literal}\n  {literal}")
    yield "".join(literals)


def _vocabulary(pieces: list[str]) -> Iterator[str]:
    """Evenly spread pieces alone, and all pieces in rows, with and without a space between them."""
    yield from pieces[:: max(1, len(pieces) // _SINGLE_PIECES)]
    for begin in range(0, len(pieces), 64):
        yield "".join(pieces[begin : begin + 64])
        yield " ".join(pieces[begin : begin + 64])


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


def _mixed(pieces: list[str], literals: list[str]) -> Iterator[str]:
    """Random mixtures of all that, by a fixed seed, and one long text without a space."""
    source = random.Random(20)
    blocks = [chr(code) for code in _BLOCKS]
    kinds = (_WORDS, pieces or _WORDS, _JOINED, blocks, literals)
    for _ in range(_MIXED):
        words = []
        for _ in range(source.randint(2, 24)):
            words += [source.choice(source.choices(kinds, (8, 8, 1, 1, 1))[0]), source.choice(_BETWEEN)]
        yield "".join(words)
    yield "".join(chr(0x4E00 + source.randrange(20000)) for _ in range(5000)) + "x" * 5000
