"""Fine-tuning data: a JSON list or JSON Lines → samples of one length, with the loss on the answers.

Every sample is int64 `tokens` [L], `labels` [L], `position_ids` [L] and float32 `loss_mask` [L]; L is
PAD_LEN, or SEQ_LEN with packing. `labels[t]` is `tokens[t + 1]`, and `loss_mask[t]` is 1 where that next
token is learnt: what the original computes from `input_ids[:, :-1]`, `input_ids[:, 1:]` and `loss_mask[:,
1:]`. Where nothing is learnt tokens and labels still hold ids inside the vocabulary, so that no mask is ever
read off an id.

Where the original differs: its `[PAD]` lies outside the vocabulary (800 of 800); it renders a null input as
"None"; a literal `[PAD]` became padding and could start the mask early; of an empty answer it learns the end token, and
here nothing is learnt. Alike: a sample longer than PAD_LEN is cut without an end token, and one whose prompt fills PAD_LEN
teaches nothing; here they are counted, and `report` says so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from megatron_patch.data.packing import pack
from megatron_patch.data.prompts import VERSION
from megatron_patch.data.sft_records import Account, Tally, counted, encode_file, judge
from megatron_patch.data.token_cache import TokenTable, cached_at, make_table, table_path
from megatron_patch.data.tokenizer import Tokenizer
from megatron_patch.errors import UserError

_WHOLE = 0.95  # of the samples: what a longer PAD_LEN that is advised keeps whole


@dataclass(frozen=True)
class SFTReport:
    """Counts of a file's samples: used, cut, left out. Token counts are after cutting."""

    path: str
    samples: int
    rows: int  # sequences that training sees; fewer than samples with packing
    length: int  # L
    cut: int  # samples longer than L, their rest and end token lost
    without_answer: int  # samples that have something to learn, and nothing of it within L
    tokens: int
    learnt: int  # tokens with loss
    advised: int  # the PAD_LEN (SEQ_LEN with packing) that keeps 95 % of the samples whole
    account: Account = Account()
    left_out: str = ""  # a sentence about records that cannot be used

    @property
    def teaches_nothing(self) -> bool:
        return self.learnt == 0

    def lines(self) -> list[str]:
        """Sentences for the console."""
        filled = 100 * self.tokens / max(1, self.rows * self.length)
        out = [
            f"{self.samples} samples in {self.rows} sequences of {self.length} ({filled:.1f} % filled): "
            + f"{self.tokens} tokens, {self.learnt} of them learnt."
        ]
        if self.left_out:
            out.append(self.left_out)
        if 2 * self.cut > self.samples:
            out.append(
                f"WARNING: {self.cut} of {self.samples} samples, more than half, are longer than {self.length} tokens and were "
                f"cut; their answers have no end token. A PAD_LEN of {self.advised} (SEQ_LEN with packing) keeps 95 % of them "
                "whole."
            )
        elif self.cut == 1:
            out.append(
                f"1 of {self.samples} samples is longer than {self.length} tokens and was cut; its answer has no end token. "
                "A larger PAD_LEN (SEQ_LEN with packing) keeps it whole."
            )
        elif self.cut:
            out.append(
                f"{self.cut} of {self.samples} samples are longer than {self.length} tokens and were cut; their "
                "answers have no end token. A larger PAD_LEN (SEQ_LEN with packing) keeps them whole."
            )
        if self.without_answer:
            has, teach = ("has", "teaches") if self.without_answer == 1 else ("have", "teach")
            out.append(f"{counted(self.without_answer)} {has} no answer within {self.length} tokens and {teach} nothing.")
        return out + self.account.lines()


@dataclass(frozen=True)
class SFTDataset:
    """Samples by index. `groups[i]` are the samples in sequence i: one each, or several with packing.

    Its length is of sequences; `part` makes one of some of the samples.
    """

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
        position_ids = np.zeros(self.length, dtype=np.int64) if self.packing else np.arange(self.length, dtype=np.int64)
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
        out: dict[str, np.ndarray] = {"tokens": tokens, "labels": labels, "loss_mask": loss_mask, "position_ids": position_ids}
        return out | {"segment_ids": segment_ids} if self.packing else out

    def part(self, samples: Sequence[int]) -> SFTDataset:
        """The data set of these samples of the table alone, packed anew."""
        groups = _groups(self.table, samples, self.length, self.packing)
        return replace(self, groups=groups, report=_report(self.report, self.table, samples, groups))

    def teaching(self) -> SFTDataset:
        """Without the samples of which nothing is learnt. The loss is per token, so that it is the same without them."""
        learnt = self.table.learnt_counts(self.length)
        return self.part(sorted(i for group in self.groups for i in group if learnt[i]))


def build_sft_dataset(
    path: str | Path,
    tokenizer: Tokenizer,
    *,
    pad_len: int,
    seq_len: int,
    template: str = "alpaca",
    packing: bool = False,
    cache_dir: str | Path | None = None,
    max_bad_fraction: float = 0.01,
) -> SFTDataset:
    """The samples of a JSON file, padded or cut to `pad_len`; with `packing`, several to a sequence of
    `seq_len`, cut to it.

    `template`: one of `prompts.TEMPLATES`. `cache_dir`: where the tokenized samples are kept, and a report of records that
    cannot be used; see `token_cache`. Raises UserError, naming the file, where it has no samples or more than
    `max_bad_fraction` of its records cannot be used; UserError for lengths and a template that cannot be.
    """
    if not 1 < pad_len <= seq_len:
        raise UserError(f"PAD_LEN is {pad_len}; it must be more than 1 and at most SEQ_LEN, {seq_len}.")
    path = Path(path)
    table, skipped = _table(path, tokenizer, template, cache_dir)
    account = Account.read(table.account)
    left_out = judge(path, account, len(table), max_bad_fraction, skipped)
    length, samples = seq_len if packing else pad_len, range(len(table))
    groups = _groups(table, samples, length, packing)
    of_the_file = SFTReport(str(path), 0, 0, length, 0, 0, 0, 0, 0, account, left_out)
    return SFTDataset(table, groups, length, packing, tokenizer.fill, _report(of_the_file, table, samples, groups))


def _table(path: Path, tokenizer: Tokenizer, template: str, cache_dir: str | Path | None) -> tuple[TokenTable, Path | None]:
    """The tokenized file, and where its unusable records are listed; without a folder for them, nowhere."""

    def build(report: Path | None) -> TokenTable:
        tally = Tally(path, report)
        table = make_table(encode_file(path, tokenizer, template, tally))
        return replace(table, account=asdict(tally.account()))

    if cache_dir is None:
        return build(None), None
    settings = {
        "tokenizer": tokenizer.fingerprint,
        "end": str(tokenizer.answer_end),
        "vocabulary": str(tokenizer.vocab_size),
        "template": template,
        "prompts": str(VERSION),
    }
    place = table_path(cache_dir, path, settings)
    report = place.with_name(f"{place.stem}_skipped.jsonl")
    return cached_at(place, lambda: build(report), Account.read), report


def _groups(table: TokenTable, samples: Sequence[int], length: int, packing: bool) -> list[list[int]]:
    if not packing:
        return [[i] for i in samples]
    sizes = np.minimum(np.diff(table.offsets)[np.asarray(samples, dtype=np.int64)], length)
    return [[samples[i] for i in group] for group in pack(sizes, length)]


def _report(common: SFTReport, table: TokenTable, samples: Sequence[int], groups: list[list[int]]) -> SFTReport:
    """The numbers of `samples` of the table, with what `common` says of the file."""
    chosen = np.asarray(samples, dtype=np.int64)
    sizes, learnt = np.diff(table.offsets)[chosen], table.learnt_counts(common.length)[chosen]
    to_learn = table.learnt_counts(int(sizes.max()))[chosen] if len(sizes) else learnt
    whole = np.sort(sizes)[math.ceil(_WHOLE * len(sizes)) - 1] if len(sizes) else 0
    return replace(
        common,
        samples=len(samples),
        rows=len(groups),
        cut=int((sizes > common.length).sum()),
        without_answer=int(((learnt == 0) & (to_learn > 0)).sum()),
        tokens=int(np.minimum(sizes, common.length).sum()),
        learnt=int(learnt.sum()),
        advised=int(whole),
    )
