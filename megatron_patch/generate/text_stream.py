"""An answer's tokens as text, as they come: whole characters alone, and no part of a word that ends the answer."""

from __future__ import annotations

from collections.abc import Sequence

from megatron_patch.data.tokenizer import Tokenizer

# Tokens before the answer that are decoded with it: what the first token's text is may depend on them (SentencePiece
# drops the space at a text's beginning).
_CONTEXT = 6
UNFINISHED = "\ufffd"  # what a decoder writes for bytes that are no character yet


class TextStream:
    """Tokens in, pieces of text out.

    Args:
        prompt: token ids before the answer.
        stop: words that end the answer; they are not part of it.

    Attributes:
        text: the answer so far, as far as it is certain.
        is_stopped: whether a stop word has come.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int], stop: Sequence[str] = ()) -> None:
        self._tokenizer, self._stop = tokenizer, tuple(word for word in stop if word)
        self._ids = list(prompt[-_CONTEXT:])
        self._begin, self._shown = 0, len(self._ids)
        self._held = ""
        self.text, self.is_stopped = "", False

    def add(self, token: int) -> str:
        """The text that is certain now and was not before; often empty."""
        assert not self.is_stopped, "nothing comes after a stop word"
        self._ids.append(token)
        return self._emit(self._decoded(last=False), last=False)

    def end(self) -> str:
        """What was held back, once no more tokens come."""
        return "" if self.is_stopped else self._emit(self._decoded(last=True), last=True)

    def _decoded(self, *, last: bool) -> str:
        """Text of the tokens that were not shown yet; empty while their last character is unfinished."""
        before = self._tokenizer.detokenize(self._ids[self._begin : self._shown])
        after = self._tokenizer.detokenize(self._ids[self._begin :])
        if not last and after.endswith(UNFINISHED):
            return ""
        self._begin, self._shown = self._shown, len(self._ids)
        return after[len(before) :]

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
