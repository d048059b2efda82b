"""A JSON list or JSON Lines file as samples of one length, with the loss on the answers.

Fine-tuning and pre-training on JSON both read it. A sample is int64 `tokens` [L], `labels` [L], `position_ids` [L] and
float32 `loss_mask` [L]. L is PAD_LEN, or SEQ_LEN with packing. `labels[t]` is `tokens[t + 1]`, and `loss_mask[t]` is 1
where that next token is learnt. The original computes the same from `input_ids[:, :-1]`, `input_ids[:, 1:]` and
`loss_mask[:, 1:]`. Where nothing is learnt, tokens and labels still hold ids of the vocabulary, so nobody may read a
mask off an id.

Four things differ from the original:

- Its `[PAD]` lies outside the vocabulary; here padding is an id inside it.
- It renders a null input as "None"; here a null input is no input.
- A literal `[PAD]` in a text became padding and could start the mask early; here it is text.
- It learns the end token of an empty answer; here an empty answer teaches nothing.

Two things are alike: a sample longer than PAD_LEN is cut without an end token, and one whose prompt fills PAD_LEN
teaches nothing. Here both are counted, and the report says so.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from megatron_patch.config import TrainConfig
from megatron_patch.data import Say
from megatron_patch.data.compared_engine import FIRST_TEXTS, PAYS_FROM, Engine, choose_engine, differs, is_compared
from megatron_patch.data.conversation import answers, is_empty_answer, unused_keys
from megatron_patch.data.json_report import Account, Report, Tally, is_endless, judge, summary
from megatron_patch.data.packing import Groups, one_each, pack
from megatron_patch.data.prompts import VERSION, Encoded, encoder
from megatron_patch.data.token_cache import Encoding, TokenTable, cached_at, make_table, table_path
from megatron_patch.data.tokenizer import Tokenizer
from megatron_patch.errors import UserError
from megatron_patch.formats.progress import shown
from megatron_patch.language.sentences import in_language
from megatron_patch.records.chunks import read_chunks
from megatron_patch.records.skipped import Skipped


@dataclass(frozen=True)
class JsonDataset:
    """Samples by index.

    Attributes:
        table: the tokens of every sample of the file.
        groups: the samples in each sequence: one each, or several with packing. The length of the data set is the
            number of sequences.
        length: L, tokens of a sequence.
        packing: whether sequences hold several samples.
        fill: the id in padding positions.
        report: counts of the samples in `groups`.
    """

    table: TokenTable
    groups: Groups
    length: int
    packing: bool
    fill: int
    report: Report

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """The arrays [L] of the module's docstring.

        With packing also `segment_ids` int64 [L]: 0 for padding, the samples from 1. `position_ids` then restart at
        each sample.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"sequence {index} of {len(self)}")
        tokens = np.full(self.length, self.fill, dtype=np.int64)
        labels = np.full(self.length, self.fill, dtype=np.int64)
        loss_mask = np.zeros(self.length, dtype=np.float32)
        position_ids = np.zeros(self.length, dtype=np.int64) if self.packing else np.arange(self.length, dtype=np.int64)
        segment_ids = np.zeros(self.length, dtype=np.int64)
        begin = 0
        for segment, i in enumerate(self.groups[index % len(self)], start=1):
            ids, learnt = self.table.sample(i, self.length)
            end = begin + len(ids)
            tokens[begin:end] = ids
            labels[begin : end - 1] = ids[1:]  # a sample's last token has no next one, so nothing is learnt there
            loss_mask[begin : end - 1] = learnt[1:]
            position_ids[begin:end] = np.arange(len(ids))
            segment_ids[begin:end] = segment
            begin = end
        out: dict[str, np.ndarray] = {"tokens": tokens, "labels": labels, "loss_mask": loss_mask, "position_ids": position_ids}
        return out | {"segment_ids": segment_ids} if self.packing else out

    @property
    def most_segments(self) -> int | None:
        """Of one sequence: its samples, and the padding behind them; None without packing."""
        return self.groups.largest + 1 if self.packing else None

    def part(self, samples: range | np.ndarray) -> JsonDataset:
        """The data set of these samples of the table alone, packed anew."""
        groups = _groups(self.table, samples, self.length, self.packing)
        return replace(self, groups=groups, report=summary(self.report, self.table, groups))

    def teaching(self) -> JsonDataset:
        """The data set without samples of which nothing is learnt.

        Its mean loss is the same, since the loss is per token.
        """
        samples = np.sort(self.groups.order)
        return self.part(samples[self.table.learnt_counts(self.length)[samples] > 0])


def run_dataset(config: TrainConfig, tokenizer: Tokenizer, path: str, say: Say) -> JsonDataset:
    """The samples of a run's JSON file. Each node's first rank tokenizes it, then all ranks read its cache.

    `say` gets lines about what was cut, left out and not used.

    Raises:
        UserError: too much of the file cannot be used.
    """
    from megatron_patch.core import parallel  # here, because inspection builds data sets without Megatron

    def build() -> JsonDataset:
        return build_json_dataset(
            path,
            tokenizer,
            pad_len=config.pad_length,
            seq_len=config.seq_length,
            template=config.template,
            packing=config.options.packing,
            cache_dir=Path(config.output_path) / "data_cache",
            max_bad_fraction=config.options.max_bad_fraction,
            tokenizer_engine=config.options.tokenizer_engine,
        )

    dataset = build() if parallel.is_first_rank_of_node() else None
    parallel.barrier()
    dataset = dataset or build()
    for line in dataset.report.lines():
        say(f"  {path}: {line}")
    return dataset


def build_json_dataset(
    path: str | Path,
    tokenizer: Tokenizer,
    *,
    pad_len: int,
    seq_len: int,
    template: str = "alpaca",
    packing: bool = False,
    cache_dir: str | Path | None = None,
    max_bad_fraction: float = 0.01,
    tokenizer_engine: str = "reference",
) -> JsonDataset:
    """The samples of a JSON file, padded or cut to `pad_len`.

    With `packing`, several samples stand in a sequence of `seq_len`, and samples are cut to that.

    Args:
        template: one of `prompts.TEMPLATES`.
        cache_dir: folder for the tokenized samples and the report of unusable records (`token_cache`); None keeps
            neither.
        max_bad_fraction: share of the records that may be unusable.
        tokenizer_engine: `auto` takes the fast engine where it pays and is right; `reference` never does.

    Raises:
        UserError: the file has no samples, or too many records cannot be used; lengths or template are not possible; or
            the fast engine turns out to be wrong while it reads.
    """
    if not 1 < pad_len <= seq_len:
        raise UserError(f"PAD_LEN is {pad_len}; it must be more than 1 and at most SEQ_LEN, {seq_len}.")
    path = Path(path)
    table, skipped = _table(path, tokenizer, template, cache_dir, tokenizer_engine)
    account = Account.read(table.account)
    left_out = judge(path, account, len(table), max_bad_fraction, skipped)
    length = seq_len if packing else pad_len
    groups = _groups(table, range(len(table)), length, packing)
    report = summary(Report(str(path), length, account, left_out), table, groups)
    return JsonDataset(table, groups, length, packing, tokenizer.fill, report)


def _table(
    path: Path, tokenizer: Tokenizer, template: str, cache_dir: str | Path | None, tokenizer_engine: str
) -> tuple[TokenTable, Path | None]:
    """The tokenized file, and the path of the report on its unusable records; None without a cache folder."""

    def build(report: Path | None) -> Encoding:
        tally = Tally(path, report)
        engine = _engine(path, tokenizer, tokenizer_engine)
        return Encoding(_encode_file(path, engine, template, tally), lambda: asdict(tally.account()))

    if cache_dir is None:
        return make_table(build(None)), None
    ends = ",".join(map(str, (tokenizer.answer_end, *tokenizer.more_ends)))
    settings = {"tokenizer": tokenizer.fingerprint, "end": ends, "vocabulary": str(tokenizer.vocab_size)}
    settings |= {"template": template, "prompts": str(VERSION)}
    place = table_path(cache_dir, path, settings)
    report = place.with_name(f"{place.stem}_skipped.jsonl")
    return cached_at(place, lambda: build(report), Account.read), report


def _groups(table: TokenTable, samples: range | np.ndarray, length: int, packing: bool) -> Groups:
    """Which samples stand in which sequence of `length` tokens: one each, or as many as fit."""
    numbers = np.arange(samples.start, samples.stop) if isinstance(samples, range) else samples
    if not packing:
        return one_each(numbers)
    packed = pack(np.minimum(np.diff(table.offsets)[numbers], length), length)
    return Groups(numbers[packed.order], packed.edges)


def _engine(path: Path, tokenizer: Tokenizer, asked: str) -> Engine:
    """What reads the file's texts; a line says what it is where there was a choice."""
    if asked == "reference" or not path.is_file() or path.stat().st_size < PAYS_FROM:
        return Engine(tokenizer, None, "")
    records = (record for _, _, record in read_records(path) if not isinstance(record, Skipped))
    engine = choose_engine(tokenizer, [json.dumps(record, ensure_ascii=False) for record in islice(records, FIRST_TEXTS)])
    print(in_language(f"  {path}: {engine.note}"), file=sys.stderr)
    return engine


def _encode_file(path: Path, engine: Engine, template: str, tally: Tally) -> Iterator[Encoded]:
    """The ids and learnt marks of every usable record, in order. `tally` counts the others.

    Raises:
        UserError: the fast engine gave other ids than the reference for a record.
    """
    encode = encoder(template, engine.tokenizer)
    compared = encoder(template, engine.reference) if engine.reference else None
    for kind, number, record in shown(read_records(path), "tokenizing {}", "samples", of=path.name):
        if isinstance(record, Skipped):
            tally.skip(kind, record)
            continue
        try:
            ids, learnt = encode(record)
            unused, said = list(unused_keys(record)), answers(record)
        except (UserError, RecursionError) as error:
            tally.skip(kind, Skipped(number, str(error)))
            continue
        tally.unused.update(unused)
        if compared and is_compared(0, number) and compared(record) != (ids, learnt):
            raise differs(f"{path}, {kind} {number}", engine)
        tally.empty_answers += any(map(is_empty_answer, said))
        tally.unanswered += not said
        tally.endless += is_endless(ids, learnt, engine.tokenizer.stops)
        yield ids, learnt


def read_records(path: Path) -> Iterator[tuple[str, int, dict[str, Any] | Skipped]]:
    """(`line` or `item`, number from 1, record) of a JSON list or JSON Lines. Blank lines are passed over.

    A record that is no JSON object comes as a Skipped with the reason.

    Raises:
        UserError: the file does not exist, or is a damaged archive.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist; give a JSON list or JSON Lines file.")
    for chunk in read_chunks([path]):
        for number, record in enumerate(chunk.records, start=chunk.first):
            if isinstance(record, bytes) and not record.strip():
                continue
            try:
                yield chunk.kind, number, _parsed(record)
            except UserError as error:
                yield chunk.kind, number, Skipped(number, str(error))
        if chunk.lost is not None:
            yield chunk.kind, chunk.lost.number, chunk.lost


def _parsed(record: Any) -> dict[str, Any]:
    """A line, or a list's item, as an object; a UserError says in one phrase why it is none."""
    try:
        value = json.loads(record) if isinstance(record, bytes) else record
    except json.JSONDecodeError as error:  # its own message counts lines, and here every record is one line
        raise UserError(f"{error.msg} at character {error.pos + 1}, so it is no JSON") from None
    except UnicodeDecodeError:
        raise UserError("it is not UTF-8") from None
    except ValueError as error:  # a number of thousands of digits
        raise UserError(f"it is no JSON: {error}") from None
    except RecursionError:
        raise UserError("it is nested too deeply") from None
    if not isinstance(value, dict):
        raise UserError(f"it is a {type(value).__name__}, it must be an object")
    return value
