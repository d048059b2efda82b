"""A text file's tokens, a part at a time, the same as of the whole text at once."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from megatron_patch.data.tokenizer import Tokenizer
from megatron_patch.errors import UserError

_PART = 1 << 20  # bytes that are tokenized at once, and the rest of their last line


def text_tokens(path: str, tokenizer: Tokenizer) -> Iterator[np.ndarray]:
    """The start token and the tokens of a text, int64 arrays one after the other.

    A tokenizer of which a token may reach over a line's end gets the whole text at once.

    Raises:
        UserError: the file is not UTF-8, or has no text; found where it is read.
    """
    size = _PART if _ends_with_lines(tokenizer) else -1
    # A text gets a space before it, a later part does not: it is read behind a line's end, whose tokens are dropped.
    line_end = tokenizer.tokenize("\n")
    begun = False
    yield np.array([tokenizer.bos], dtype=np.int64)
    for number, text in enumerate(_parts(path, size)):
        begun = begun or bool(text.strip())
        ids = tokenizer.tokenize("\n" + text)[len(line_end) :] if number else tokenizer.tokenize(text)
        yield np.array(ids, dtype=np.int64)
    if not begun:
        raise UserError(f"{path} holds no text; write another file.")


def _parts(path: str, size: int) -> Iterator[str]:
    """Whole lines of about `size` bytes together; all of the file with -1."""
    before = 0
    with open(path, "rb") as file:
        while lines := file.readlines(size):
            data = b"".join(lines)
            try:
                text = data.decode("utf-8")
            except UnicodeDecodeError as error:
                raise UserError(f"{path} is not UTF-8 (byte {before + error.start}); save it as UTF-8.") from None
            yield text if before else text.removeprefix("\ufeff")
            before += len(data)


def _ends_with_lines(tokenizer: Tokenizer) -> bool:
    """Whether no token holds a line's end and something else, so that lines do not matter to each other.

    LLaMA's vocabulary is such a one.
    """
    if tokenizer.detokenize(tokenizer.tokenize("a\n\n b")) != "a\n\n b":  # normalized away
        return False
    tokens = (tokenizer.detokenize([i]) for i in set(range(tokenizer.vocab_size)) - set(tokenizer.special_tokens.values()))
    return not any("\n" in token and token != "\n" for token in tokens)
