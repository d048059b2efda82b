"""Text with literals of special tokens in it, for an engine that knows none: split at them, and put together again."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

# What Unicode calls white space, which the `tokenizers` library strips. Python's own list has four more.
_SPACES = "\t\n\x0b\x0c\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))


@dataclass(frozen=True)
class Strips:
    """Literals of tokens that swallow the white space beside them: `lstrip` and `rstrip` in a folder's files."""

    left: frozenset[str] = frozenset()
    right: frozenset[str] = frozenset()


def marked_encoder(start: Callable, rest: Callable, special: Mapping[str, int], strips: Strips) -> Callable[[str], list[int]]:
    """A function from a text to ids that splits the text at special literals.

    Args:
        start: encodes what stands before the first literal, with SentencePiece's leading space.
        rest: encodes what follows a literal, without that space.
        special: literal → id.
        strips: which of them take white space with them. In Phi-3's folder nearly all do.
    """
    literals = re.compile("(" + "|".join(re.escape(s) for s in sorted(special, key=len, reverse=True)) + ")")

    def encode(text: str) -> list[int]:
        pieces = literals.split(text)  # text, literal, text, literal, …, text
        for place in range(1, len(pieces), 2):
            if pieces[place] in strips.left:
                pieces[place - 1] = pieces[place - 1].rstrip(_SPACES)
            if pieces[place] in strips.right:
                pieces[place + 1] = pieces[place + 1].lstrip(_SPACES)
        ids = list(start(pieces[0]))
        for place, piece in enumerate(pieces[1:]):
            ids += rest(piece) if place % 2 else [special[piece]]
        return ids

    return encode
