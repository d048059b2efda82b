"""Files as sequences of tokens of which some are to be predicted: fine-tuning samples, and windows over documents."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from megatron_patch.data import Say
from megatron_patch.data.json_dataset import build_json_dataset, read_records
from megatron_patch.data.json_report import Tally, judge
from megatron_patch.data.tokenizer import Tokenizer
from megatron_patch.errors import UserError
from megatron_patch.evaluate.text_file import text_tokens
from megatron_patch.records.chunks import read_chunks
from megatron_patch.records.files import is_json
from megatron_patch.records.indexed import check_indexed_dataset
from megatron_patch.records.texts import texts_of

SFT, TEXT, JSON_TEXT, INDEXED = "fine-tuning samples", "text", "documents", "indexed documents"
# Keys by which a record is a document; one with any of the others is a sample of fine-tuning.
_TEXT_KEYS = ("text", "content")
_SFT_KEYS = ("instruction", "messages", "conversations")
_NOTHING = -1  # label of a position at which nothing is predicted
_LOOKED_AT = 1000  # records of which one must say what a file is


@dataclass(frozen=True)
class Window:
    """What goes through the model at once: `tokens` and `labels` int64 [S]; a label below 0 is not counted."""

    tokens: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True)
class Reading:
    """How files are read. Lengths are tokens. `say` gets lines about what was cut, left out and not used."""

    tokenizer: Tokenizer
    seq_length: int
    pad_length: int
    stride: int
    template: str
    max_bad_fraction: float
    say: Say = lambda line: None


@dataclass
class Unused:
    """What of a file is not counted, noted while it is read.

    Attributes:
        cut: samples that are longer than PAD_LEN.
        left_out: records that cannot be used.
        empty: documents without text.
    """

    cut: int = 0
    left_out: int = 0
    empty: int = 0


def kind_of(path: str) -> str:
    """Which of the four kinds a path names. Of JSON the first record that is a document or a sample says it.

    Raises:
        UserError: none of the first records is one.
    """
    if not os.path.isfile(path):
        return INDEXED
    if not is_json(Path(path)):
        return TEXT
    count = 0
    for _, _, record in islice(read_records(Path(path)), _LOOKED_AT):
        count += 1
        keys = record if isinstance(record, dict) else {}
        if any(key in keys for key in _SFT_KEYS):
            return SFT
        if any(isinstance(keys.get(key), str) for key in _TEXT_KEYS):
            return JSON_TEXT
    if not count:
        raise UserError(f"{path} holds no samples; give a JSON list or JSON Lines file with at least one.")
    wanted = "instruction, messages or conversations (fine-tuning data), or text or content (documents)"
    raise UserError(f"{path}: none of its first {count} records has one of {wanted}; write a file of such records.")


def windows_of(path: str, kind: str, reading: Reading, unused: Unused) -> Iterator[Iterable[Window]]:
    """The windows of each sample or document of a file, made as they are asked for.

    `unused` is complete after the last one.

    Raises:
        UserError: the file cannot be read, or too many of its records cannot be used.
    """
    if kind == SFT:
        yield from ([window] for window in _samples(Path(path), reading, unused))
        return
    if kind == INDEXED:
        data = check_indexed_dataset(path, reading.tokenizer.vocab_size)
        documents: Iterator[Iterable[np.ndarray]] = ([data.document(i).astype(np.int64)] for i in range(len(data.lengths)))
    elif kind == TEXT:
        documents = iter([text_tokens(path, reading.tokenizer)])
    else:
        tokenizer, texts = reading.tokenizer, _documents(Path(path), reading, unused)
        documents = ([np.array([tokenizer.bos, *tokenizer.tokenize(text)], dtype=np.int64)] for text in texts)
    for parts in documents:
        yield windows(parts, reading.seq_length, reading.stride)


def _samples(path: Path, reading: Reading, unused: Unused) -> Iterator[Window]:
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
    for line in dataset.report.lines():
        reading.say(f"  {path}: {line}")
    unused.cut, unused.left_out = dataset.report.cut, dataset.report.account.bad
    for sample in range(len(dataset.table)):
        ids, learnt = dataset.table.sample(sample, length)
        tokens = ids.astype(np.int64)
        yield Window(tokens[:-1], np.where(learnt[1:], tokens[1:], _NOTHING))


def _documents(path: Path, reading: Reading, unused: Unused) -> Iterator[str]:
    """Texts of a file of JSON or Parquet.

    Raises:
        UserError: too many of the records have no text.
    """
    tally, count = Tally(path, None), 0
    for chunk in read_chunks([path]):
        texts, skipped = texts_of(chunk, _TEXT_KEYS, None)
        for one in skipped:
            if one.empty:
                unused.empty += one.records
            else:
                tally.skip(chunk.kind, one)
        count += len(texts)
        yield from (text for _, text in texts)
    account = tally.account()
    if left_out := judge(path, account, count, reading.max_bad_fraction, None):
        reading.say(f"  {path}: {left_out}")
    unused.left_out = account.bad


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
