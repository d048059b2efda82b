"""Fine-tuning data: a JSON list or JSON Lines → samples of one length, with the loss on the answers.

Every sample is int64 `tokens` [L], `labels` [L], `position_ids` [L] and float32 `loss_mask` [L]; L is
PAD_LEN, or SEQ_LEN with packing. `labels[t]` is `tokens[t + 1]`, and `loss_mask[t]` is 1 where that next
token is learnt: what the original computes from `input_ids[:, :-1]`, `input_ids[:, 1:]` and `loss_mask[:,
1:]`. Where nothing is learnt tokens and labels still hold ids inside the vocabulary, so that no mask is ever
read off an id.

Where the original differs: its `[PAD]` lies outside the vocabulary (800 of 800); it renders a null input as
"None"; a literal `[PAD]` became padding and could start the mask early. Alike: a sample longer than PAD_LEN
is cut without an end token, and one whose prompt fills PAD_LEN teaches nothing; here both are counted, and
`report` says so.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from megatron_patch.data.packing import pack
from megatron_patch.data.prompts import Encoded, encoder
from megatron_patch.data.records import DAMAGED, BrokenListError, begins_list, open_stream, read_list
from megatron_patch.data.token_cache import TokenTable, cached_table, make_table
from megatron_patch.data.tokenizer import Tokenizer
from megatron_patch.errors import UserError
from megatron_patch.json_files import one_line


@dataclass(frozen=True)
class SFTReport:
    """What became of a file's samples. Token counts are after cutting."""

    path: str
    samples: int
    rows: int  # sequences that training sees; fewer than samples with packing
    length: int  # L
    cut: int  # samples longer than L, their rest and end token lost
    without_answer: int  # samples of which nothing is learnt
    tokens: int
    learnt: int  # tokens with loss

    def lines(self) -> list[str]:
        """Sentences for the console."""
        filled = 100 * self.tokens / max(1, self.rows * self.length)
        out = [
            f"{self.samples} samples in {self.rows} sequences of {self.length} ({filled:.1f} % filled): "
            + f"{self.tokens} tokens, {self.learnt} of them learnt."
        ]
        if self.cut:
            out.append(
                f"{self.cut} of {self.samples} samples are longer than {self.length} tokens and were cut; their "
                "answers have no end token. A larger PAD_LEN (SEQ_LEN with packing) keeps them whole."
            )
        if self.without_answer:
            out.append(
                f"{self.without_answer} samples have no answer within {self.length} tokens and teach nothing."
            )
        return out


@dataclass(frozen=True)
class SFTDataset:
    """Samples by index. `groups[i]` are the samples in sequence i: one each, or several with packing."""

    table: TokenTable
    groups: list[list[int]]
    length: int  # L
    packing: bool
    fill: int
    report: SFTReport

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """The arrays of the module's docstring; with packing also `segment_ids` int64 [L], 0 for padding,
        samples from 1.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"sequence {index} of {len(self)}")
        tokens = np.full(self.length, self.fill, dtype=np.int64)
        labels = np.full(self.length, self.fill, dtype=np.int64)
        loss_mask = np.zeros(self.length, dtype=np.float32)
        position_ids = (
            np.zeros(self.length, dtype=np.int64) if self.packing else np.arange(self.length, dtype=np.int64)
        )
        segment_ids = np.zeros(self.length, dtype=np.int64)
        begin = 0
        for segment, i in enumerate(self.groups[index], start=1):
            ids, learnt = self.table.sample(i, self.length)
            end = begin + len(ids)
            tokens[begin:end] = ids
            labels[begin : end - 1] = ids[1:]
            loss_mask[begin : end - 1] = learnt[1:]
            position_ids[begin:end] = np.arange(len(ids))
            segment_ids[begin:end] = segment
            begin = end
        out = {"tokens": tokens, "labels": labels, "loss_mask": loss_mask, "position_ids": position_ids}
        return out | {"segment_ids": segment_ids} if self.packing else out


def build_sft_dataset(
    path: str | Path,
    tokenizer: Tokenizer,
    *,
    pad_len: int,
    seq_len: int,
    template: str = "alpaca",
    packing: bool = False,
    cache_dir: str | Path | None = None,
) -> SFTDataset:
    """The samples of a JSON file, padded or cut to `pad_len`; with `packing`, several to a sequence of
    `seq_len`, cut to it.

    `template`: `alpaca`, `llama2-chat` or `tokenizer` (the folder's own chat template). `cache_dir`: where
    the tokenized samples are kept; see `token_cache.cached_table`. Raises ValueError, naming file and item,
    for what cannot be used.
    """
    if not 1 < pad_len <= seq_len:
        raise ValueError(f"PAD_LEN is {pad_len}; it must be more than 1 and at most SEQ_LEN, {seq_len}.")
    path = Path(path)

    def build() -> TokenTable:
        return make_table(encode_file(path, tokenizer, template))

    if cache_dir is None:
        table = build()
    else:
        table = cached_table(
            cache_dir, path, {"tokenizer": tokenizer.fingerprint, "template": template}, build
        )
    _refuse_empty(path, table)
    length = seq_len if packing else pad_len
    groups = (
        pack(np.minimum(np.diff(table.offsets), length), length)
        if packing
        else [[i] for i in range(len(table))]
    )
    report = _report(str(path), table, len(groups), length)
    return SFTDataset(table, groups, length, packing, tokenizer.fill, report)


def _refuse_empty(path: Path, table: TokenTable) -> None:
    """ValueError naming the first sample without tokens: a chat template may make nothing of one, and no row can hold it."""
    empty = np.flatnonzero(np.diff(table.offsets) == 0)
    if empty.size:
        raise ValueError(
            f"{path}, sample {empty[0] + 1}: it has no tokens; remove it, or choose another --template, of which it makes a text."
        )


def read_samples(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number from 1, record) of a JSON list or JSON Lines; blank lines are passed over.

    Raises ValueError naming the file and the item (list) or line: no JSON, or not an object; and for a file
    without records.
    """
    if not path.is_file():
        raise ValueError(f"{path} does not exist; give a JSON list or JSON Lines file.")
    try:
        yield from _read_samples(path)
    except DAMAGED as error:
        raise UserError(f"{path} cannot be read to its end ({one_line(error)}); fetch or pack it again.") from None


def _read_samples(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    number = 0
    with open_stream(path) as stream:
        is_list = begins_list(stream)
        kind = "item" if is_list else "line"
        try:
            for number, value in read_list(stream) if is_list else enumerate(stream, start=1):
                if not is_list:
                    if not value.strip():
                        continue
                    value = json.loads(value)
                if not isinstance(value, dict):
                    raise ValueError(f"it is a {type(value).__name__}, it must be an object")
                yield number, value
        except BrokenListError as error:
            raise ValueError(
                f"{path}, item {error.number}: {error.reason}; the list must be valid JSON."
            ) from error
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}, {kind} {number}: {error}; write one JSON object a {kind}.") from error
    if number == 0:
        raise ValueError(f"{path} holds no samples; give a file with at least one.")


def encode_file(path: Path, tokenizer: Tokenizer, template: str) -> Iterator[Encoded]:
    """Every record's ids and learnt marks. Raises ValueError naming file and number where a record cannot be
    used.
    """
    from tqdm import tqdm

    encode = encoder(template, tokenizer)
    samples = tqdm(
        read_samples(path), desc=f"tokenizing {path.name}", unit=" samples", file=sys.stderr, delay=3
    )
    for number, record in samples:
        try:
            yield encode(record)
        except ValueError as error:
            raise ValueError(f"{path}, sample {number}: {error}.") from error


def _report(path: str, table: TokenTable, rows: int, length: int) -> SFTReport:
    sizes, learnt = np.diff(table.offsets), table.learnt_counts(length)
    return SFTReport(
        path=path,
        samples=len(table),
        rows=rows,
        length=length,
        cut=int((sizes > length).sum()),
        without_answer=int((learnt == 0).sum()),
        tokens=int(np.minimum(sizes, length).sum()),
        learnt=int(learnt.sum()),
    )
