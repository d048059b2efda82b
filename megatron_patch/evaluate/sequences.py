"""Files as sequences of tokens of which some are to be predicted: fine-tuning samples, and windows over documents."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megatron_patch.data.json_dataset import build_json_dataset, read_records
from megatron_patch.data.tokenizer import Tokenizer
from megatron_patch.errors import UserError
from megatron_patch.evaluate.text_file import text_tokens
from megatron_patch.records.chunks import read_chunks
from megatron_patch.records.files import holds_json
from megatron_patch.records.indexed import check_indexed_dataset
from megatron_patch.records.skipped import Skipped
from megatron_patch.records.texts import texts_of

SFT, TEXT, JSON_TEXT, INDEXED = "fine-tuning samples", "text", "documents", "indexed documents"
# Keys by which a record is a document; one with any of the others is a sample of fine-tuning.
_TEXT_KEYS = ("text", "content")
_SFT_KEYS = ("instruction", "messages", "conversations")
_NOTHING = -1  # label of a position at which nothing is predicted


@dataclass(frozen=True)
class Window:
    """What goes through the model at once: `tokens` and `labels` int64 [S]; a label below 0 is not counted."""

    tokens: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True)
class Reading:
    """How files are read. Lengths are tokens."""

    tokenizer: Tokenizer
    seq_length: int
    pad_length: int
    stride: int
    template: str
    max_bad_fraction: float


def kind_of(path: str) -> str:
    """Which of the four kinds a path names.

    Raises:
        UserError: JSON whose first record is neither a document nor a sample.
    """
    if not os.path.isfile(path):
        return INDEXED
    if not holds_json(Path(path)):
        return TEXT
    _, _, record = next(read_records(Path(path)), ("", 0, None))
    keys = record if isinstance(record, dict) else {}
    if any(key in keys for key in _SFT_KEYS):
        return SFT
    if any(isinstance(keys.get(key), str) for key in _TEXT_KEYS):
        return JSON_TEXT
    wanted = "instruction, messages or conversations (fine-tuning data), or text or content (documents)"
    raise UserError(f"{path}: its first record has none of {wanted}; write a file of such records.")


def windows_of(path: str, kind: str, reading: Reading) -> Iterator[Iterable[Window]]:
    """The windows of each sample or document of a file, made as they are asked for.

    Raises:
        UserError: the file cannot be read, or too many of its records cannot be used.
    """
    if kind == SFT:
        yield from ([window] for window in _samples(Path(path), reading))
        return
    if kind == INDEXED:
        data = check_indexed_dataset(path, reading.tokenizer.vocab_size)
        documents: Iterator[Iterable[np.ndarray]] = ([data.document(i).astype(np.int64)] for i in range(len(data.lengths)))
    elif kind == TEXT:
        documents = iter([text_tokens(path, reading.tokenizer)])
    else:
        tokenizer, texts = reading.tokenizer, _documents(Path(path), reading.max_bad_fraction)
        documents = ([np.array([tokenizer.bos, *tokenizer.tokenize(text)], dtype=np.int64)] for text in texts)
    for parts in documents:
        yield windows(parts, reading.seq_length, reading.stride)


def _samples(path: Path, reading: Reading) -> Iterator[Window]:
    """As training reads them, cut to PAD_LEN."""
    length = reading.pad_length
    dataset = build_json_dataset(
        path,
        reading.tokenizer,
        pad_len=length,
        seq_len=max(length, reading.seq_length),
        template=reading.template,
        max_bad_fraction=reading.max_bad_fraction,
    )
    for sample in range(len(dataset.table)):
        ids, learnt = dataset.table.sample(sample, length)
        tokens = ids.astype(np.int64)
        yield Window(tokens[:-1], np.where(learnt[1:], tokens[1:], _NOTHING))


def _documents(path: Path, allowed: float) -> Iterator[str]:
    """Texts of a JSON list or JSON Lines.

    Raises:
        UserError: more than the fraction `allowed` of the records have no text.
    """
    bad: list[Skipped] = []
    count = 0
    for chunk in read_chunks([path]):
        texts, skipped = texts_of(chunk, _TEXT_KEYS, None)
        bad += [one for one in skipped if not one.empty]
        count += len(texts)
        yield from (text for _, text in texts)
    total = count + sum(one.records for one in bad)
    if total > count and total - count > allowed * total or not count:
        first = "; ".join(f"record {one.number}: {one.reason}" for one in itertools.islice(bad, 3)) or "it has none"
        raise UserError(f"{path}: {total - count} of {total} records cannot be used ({first}); mend them, or allow more with "
                        "--max-bad-fraction.")  # fmt: skip


def windows(parts: Iterable[np.ndarray], length: int, stride: int) -> Iterator[Window]:
    """Windows of up to `length` tokens over a document, each `stride` (at most `length`) behind the one before.

    Every token but the first is counted once, in the first window that reaches it: with as many tokens before it as
    windows allow without going through the text once for each token.

    Args:
        parts: the document's tokens, int64 arrays one after the other, which are asked for as windows need them.
    """
    left = iter(parts)
    held = np.empty(0, dtype=np.int64)  # from the window's beginning on
    counted = 1  # the first token of `held` that no window has predicted yet
    while True:
        while len(held) <= length and (part := next(left, None)) is not None:
            held = np.concatenate([held, part])
        end = min(length, len(held) - 1)
        if end < counted:
            return
        labels = held[1 : end + 1].copy()
        labels[: counted - 1] = _NOTHING
        yield Window(held[:end], labels)
        if end < length:
            return
        held, counted = held[stride:], end + 1 - stride
