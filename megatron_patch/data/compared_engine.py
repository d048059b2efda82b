"""The engine that reads many texts: the fast one as long as it gives its reference's ids, else the reference.

SentencePiece is the reference for tokenizer.model, `tokenizers` for tokenizer.json. The fast engine is compared on the
texts of `probe_texts` and on the input's first texts before it is used. While it is used one record in a thousand is
compared too, by whoever uses it (`is_compared`).
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from megatron_patch.data.fast_engine import NoFastEngineError, fast_tokenizer
from megatron_patch.data.probe_texts import probe_texts
from megatron_patch.data.tokenizer import Tokenizer
from megatron_patch.errors import UserError
from megatron_patch.formats.json_files import one_line

PAYS_FROM = 8 << 20  # bytes of input; below, making and comparing the fast engine takes longer than it saves
FIRST_TEXTS = 64  # of the input, that are compared
_MARKED_ONE_IN = 8
ONE_IN = 1000  # records that are compared while the fast engine reads


@dataclass(frozen=True)
class Engine:
    """What reads the texts.

    Attributes:
        tokenizer: reads them.
        reference: what some of them are compared with; None where `tokenizer` is the reference.
        note: a sentence about the choice.
    """

    tokenizer: Tokenizer
    reference: Tokenizer | None
    note: str


def choose_engine(reference: Tokenizer, first_texts: Sequence[str]) -> Engine:
    """The fast engine if it gives `reference`'s ids for the input's first texts and those of `probe_texts`."""
    try:
        fast = fast_tokenizer(reference)
    except NoFastEngineError as error:
        return Engine(reference, None, f"{reference.engine} reads the texts, because {error}.")
    texts = [*first_texts[:FIRST_TEXTS], *probe_texts(reference)]
    found = difference(reference, fast, texts)
    if found is not None:
        why = f"{fast.engine} gives other ids, for example for {one_line(repr(found), 80)}"
        return Engine(reference, None, f"{reference.engine} reads the texts, because {why}.")
    return Engine(fast, reference, f"{fast.engine} reads the texts; on {len(texts)} texts it gave the ids of {reference.engine}.")


def difference(reference: Tokenizer, fast: Tokenizer, texts: list[str]) -> str | None:
    """The first text for which the engines' ids differ, or at which the fast one fails; None if there is none.

    All texts are read in one batch. Those with special tokens, and some of the others, are also read one by one, as
    plain texts, with special tokens and behind one.
    """
    batch = _tried(fast.tokenize_batch, texts)
    rows = iter(np.split(batch[0], np.cumsum(batch[1])[:-1])) if batch and len(batch[1]) == len(texts) else iter(())
    literals = tuple(reference.special_tokens)
    for number, text in enumerate(texts):
        row = next(rows, None)
        if row is None or row.tolist() != reference.tokenize(text):
            return text
        if number % _MARKED_ONE_IN and not any(literal in text for literal in literals):
            continue
        for read in ("tokenize", "tokenize_marked", "tokenize_after_end"):
            wanted = getattr(reference, read)(text)
            if _tried(getattr(fast, read), text) != wanted:
                return text
    return None


def _tried(read: Callable[[Any], Any], texts: Any) -> Any:
    """What `read` makes of `texts`; None where the engine raises, be it a panic of its Rust code."""
    try:
        return read(texts)
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        return None


def is_compared(file: int, number: int) -> bool:
    """Whether the record of this number in this file is compared.

    It depends on nothing else, so a run that goes on and one of other workers compare the same records.
    """
    return zlib.crc32(b"%d:%d" % (file, number)) % ONE_IN == 0


def differs(place: str, engine: Engine) -> UserError:
    """The error for a record whose ids differ."""
    assert engine.reference is not None
    return UserError(
        f"{place}: {engine.tokenizer.engine} gave other ids than {engine.reference.engine}; nothing of this run is kept. "
        "Run it again with --tokenizer-engine reference, and report this record to the project."
    )
