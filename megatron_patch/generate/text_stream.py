"""An answer's tokens as text, as they come: whole characters alone, and no part of a word that ends the answer."""

from __future__ import annotations

import codecs
import re
from collections.abc import Sequence

from megatron_patch.data.tokenizer import Tokenizer

# Tokens that are decoded with the next one, since its text may depend on them. SentencePiece drops the space at a
# text's beginning. And of a character's four bytes three may have come, each by a token of its own.
_CONTEXT = 3
UNFINISHED = "\ufffd"  # what a decoder writes for bytes that are no character yet
_BYTE = re.compile("<0x([0-9A-F]{2})>")  # a piece that is one byte

# SentencePiece writes UNFINISHED for each byte of a broken character. Python would write one for several bytes.
codecs.register_error("megatron_patch.each_byte", lambda error: (UNFINISHED, error.start + 1))  # type: ignore[attr-defined]


def byte_of(tokenizer: Tokenizer, token: int) -> int | None:
    """The byte that a token is, where the vocabulary has one for each; None for a token that is text.

    A tokenizer may have such a name and read it as text. Its decoder tells.
    """
    found = _BYTE.fullmatch(tokenizer.piece(token) or "")
    return int(found[1], 16) if found and len(tokenizer.detokenize([token])) <= 1 else None


class TextStream:
    """Tokens in, pieces of text out. Each token takes the same time, whatever came before it.

    The pieces together are what the tokenizer decodes prompt and answer to, behind the prompt's text. Where the prompt
    ends inside a character that the answer completes, that character is the answer's.

    Args:
        prompt: token ids before the answer.
        stop: words that end the answer; they are not part of it.

    Attributes:
        text: the answer so far, as far as it is certain.
        is_stopped: whether a stop word has come.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int], stop: Sequence[str] = ()) -> None:
        self._tokenizer, self._stop = tokenizer, tuple(word for word in stop if word)
        spoken = [token for token in prompt if token not in tokenizer.left_out]
        self._window = _with_text(tokenizer, spoken)
        self._unshown = 0  # characters at the end of the window's text that may still become another one
        self._bytes = codecs.getincrementaldecoder("utf-8")("megatron_patch.each_byte")
        self._left_out = 0  # tokens since the first byte that is no character yet
        self._begin_inside_a_character(spoken[-_CONTEXT:])
        if waiting := self._waiting:
            begins = [place for place, token in enumerate(prompt) if token not in tokenizer.left_out][-waiting]
            self._left_out = len(prompt) - begins - waiting
        self._held = ""
        self.text, self.is_stopped = "", False

    @property
    def unfinished(self) -> int:
        """How many of the last tokens are bytes that are no character yet, and tokens left out amid them."""
        return self._waiting + self._left_out if self._waiting else 0

    @property
    def _waiting(self) -> int:
        """Bytes that are no character yet."""
        return len(self._bytes.getstate()[0])

    def add(self, token: int) -> str:
        """The text that is certain now and was not before; often empty."""
        assert not self.is_stopped, "nothing comes after a stop word"
        self._left_out = self._left_out if self._waiting else 0
        if token in self._tokenizer.left_out:
            self._left_out += 1
            return ""
        byte = byte_of(self._tokenizer, token)
        if byte is None:
            return self._emit(self._broken() + self._joined(token), last=False)
        new = self._rest() + self._without_the_prompts(self._bytes.decode(bytes([byte])))
        self._window = [*self._window, token][-_CONTEXT:]
        return self._emit(new, last=False)

    def end(self) -> str:
        """What was held back, once no more tokens come."""
        return "" if self.is_stopped else self._emit(self._rest() + self._broken(), last=True)

    def _begin_inside_a_character(self, last: Sequence[int]) -> None:
        """Know the bytes of a character that the prompt's `last` tokens begin."""
        for token in last:
            byte = byte_of(self._tokenizer, token)
            if byte is None:
                self._bytes.reset()
            else:
                self._bytes.decode(bytes([byte]))
        self._of_prompt = self._waiting

    def _broken(self) -> str:
        """Bytes that have become no character, now that none follow."""
        return self._without_the_prompts(self._bytes.decode(b"", True))

    def _without_the_prompts(self, new: str) -> str:
        """`new` without the prompt's bytes, if they have become no character: those are text of the prompt."""
        while new and self._of_prompt:
            self._of_prompt -= 1
            if not new.startswith(UNFINISHED):
                self._of_prompt = 0
                break
            new = new[1:]
        return new

    def _joined(self, token: int) -> str:
        """What a token adds to the window's text.

        Its last character may be part of one, where tokens hold several bytes; then it waits for the next token.
        """
        before, self._window = self._tokenizer.detokenize(self._window), [*self._window, token]
        after = self._tokenizer.detokenize(self._window)
        begin = _common(before[: len(before) - self._unshown], after)
        certain = max(begin, len(after) - after.endswith(UNFINISHED))
        self._unshown = len(after) - certain
        if after == before and self._tokenizer.piece(token) in self._tokenizer.special_tokens:
            self._window.pop()  # without text it is no context
        self._window = self._window[-_CONTEXT:]
        return after[begin:certain]

    def _rest(self) -> str:
        """What waits in the window, now that nothing can change it."""
        text = self._tokenizer.detokenize(self._window) if self._unshown else ""
        rest, self._unshown = text[len(text) - self._unshown :], 0
        return rest

    def _emit(self, new: str, *, last: bool) -> str:
        """Hold back what may be the beginning of a stop word, and cut at a whole one."""
        self._held += new
        places = [place for word in self._stop if (place := self._held.find(word)) >= 0]
        if places:
            self.is_stopped = True
            out = self._held[: min(places)]
        else:
            out = self._held if last else self._held[: len(self._held) - self._possible_beginning()]
        self._held = self._held[len(out) :]
        self.text += out
        return out

    def _possible_beginning(self) -> int:
        """How many of the last held characters a stop word begins with."""
        most = 0
        for word in self._stop:
            for size in range(min(len(word) - 1, len(self._held)), most, -1):
                if self._held.endswith(word[:size]):
                    most = size
                    break
        return most


def _with_text(tokenizer: Tokenizer, prompt: Sequence[int]) -> list[int]:
    """The prompt's last tokens, as many as it takes that they have text."""
    count = _CONTEXT
    while count < len(prompt) and not tokenizer.detokenize(prompt[-count:]):
        count *= 2
    return list(prompt[-count:])


def _common(one: str, other: str) -> int:
    """How many characters both begin with."""
    if other.startswith(one):
        return len(one)
    return next(place for place, (a, b) in enumerate(zip(one, other + "\0")) if a != b)
