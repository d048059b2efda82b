"""Log-probabilities in the form of OpenAI's `/v1/completions`: tokens as texts, where they begin, what else could have
come.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from megatron_patch.data.tokenizer import Tokenizer
from megatron_patch.generate.logprobs import Score
from megatron_patch.generate.text_stream import UNFINISHED, TextStream, byte_of

_BEFORE = "a"  # what tokens are read behind: SentencePiece drops the space of a text's first one


class TokenTexts:
    """Each token's own text as OpenAI writes it: a special token's name, `bytes:\\xe4` for a part of a character."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._names = {number: name for name, number in tokenizer.special_tokens.items()}
        self._before = tokenizer.tokenize(_BEFORE)
        self._size = len(tokenizer.detokenize(self._before))
        self._known: dict[int, str] = {}

    def of(self, token: int) -> str:
        """The text of a token; empty for one that the tokenizer does not have."""
        if token not in self._known:
            text = self._names.get(token, "")
            if not text and token < self._tokenizer.vocab_size:
                text = self._tokenizer.detokenize([*self._before, token])[self._size :]
                byte = byte_of(self._tokenizer, token)
                text = f"bytes:\\x{byte:02x}" if byte is not None and text == UNFINISHED else text
            self._known[token] = text
        return self._known[token]


class Logprobs:
    """One answer's log-probabilities, as its tokens come.

    Args:
        texts: of the tokenizer's tokens.
        prompt: token ids before the answer.
        count: how many of the most probable tokens are told.
        is_echoed: whether the prompt's tokens are told as well; they come first then.
    """

    def __init__(self, texts: TokenTexts, tokenizer: Tokenizer, prompt: Sequence[int], count: int, is_echoed: bool) -> None:
        self._texts, self._count, self._tokenizer = texts, count, tokenizer
        self._before, self._stream = 0, TextStream(tokenizer, [])
        if not is_echoed:
            self._pass_over(prompt)

    def _pass_over(self, prompt: Sequence[int]) -> None:
        """Know where the answer's first character begins: often from one decoding of the prompt."""
        unfinished = TextStream(self._tokenizer, prompt).unfinished
        known, rest = prompt[: len(prompt) - unfinished], prompt[len(prompt) - unfinished :]
        text = self._tokenizer.detokenize(known)
        if text.endswith(UNFINISHED) and byte_of(self._tokenizer, known[-1]) is None:
            rest = prompt  # its last character may go on, where tokens hold several bytes
        else:
            self._before, self._stream = len(text), TextStream(self._tokenizer, known)
        for token in rest:
            self._stream.add(token)

    def body(self, scores: Sequence[Score]) -> dict[str, Any]:
        """The `logprobs` of a choice, or of a piece of one.

        An offset is where a token's text begins, in characters from the prompt's beginning.
        """
        tokens = [self._texts.of(one.token) for one in scores]
        return {
            "tokens": tokens,
            "token_logprobs": [one.logprob for one in scores],
            "top_logprobs": [self._top(one) for one in scores],
            "text_offset": [self._begin(one.token, text) for one, text in zip(scores, tokens)],
        }

    def _begin(self, token: int, text: str) -> int:
        """Where the text of the next token begins; of a character's bytes, where the character does."""
        before = self._before + len(self._stream.text)
        self._stream.add(token)
        after = self._before + len(self._stream.text)
        if byte_of(self._tokenizer, token) is not None:
            return after if self._stream.unfinished else after - 1
        return max(before, after - len(text)) if after > before else before

    def _top(self, score: Score) -> dict[str, float] | None:
        """The most probable tokens, and the one that is there. Of several with one text the most probable counts."""
        if score.logprob is None:
            return None
        found: dict[str, float] = {}
        for token, logprob in (*score.top[: self._count], (score.token, score.logprob)):
            found.setdefault(self._texts.of(token), logprob)
        return found
