"""A fine-tuning file → encoded samples, and an account of what of it was not used.

A record that cannot be used is left out, and a line of JSON with file, number and reason goes into a report, as preparation does
with documents. Keys that no template reads are counted by name.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from megatron_patch.data.conversation import METADATA, answers_without_text, unused_keys
from megatron_patch.data.prompts import Encoded, encoder
from megatron_patch.data.tokenizer import Tokenizer
from megatron_patch.errors import UserError
from megatron_patch.records.documents import REPORT_BYTES, Skipped, read_chunks, report_lines

_SHOWN = 3  # bad records that an error quotes
_SHOWN_KEYS = 20


@dataclass(frozen=True)
class Account:
    """The records of a file that were not used. Plain values, because they are stored beside the tokens."""

    bad: int = 0  # records left out; an estimate where a JSON list breaks off
    first_bad: list[str] = field(default_factory=list)
    empty_answers: int = 0  # samples with an answer of which only the end token is learnt
    endless: int = 0  # samples whose answers hold no end token: the folder's chat template writes none
    unused: dict[str, int] = field(default_factory=dict)  # key → records that have it with content

    def lines(self) -> list[str]:
        """Sentences for the console, but for the bad records."""
        out = []
        if self.empty_answers:
            out.append(f"{self.empty_answers} samples have an empty answer: they teach nothing but to end at once.")
        if self.endless:
            out.append(
                f"WARNING: the answers of {self.endless} samples hold no end token that the folder's model waits for, since its "
                "chat template writes none; choose another --template, or mend that one or the folder's eos_token_id."
            )
        said = {name: f"{name!r} ({count} records)" for name, count in list(self.unused.items())[:_SHOWN_KEYS]}
        others = [text for name, text in said.items() if name not in METADATA]
        metadata = [text for name, text in said.items() if name in METADATA]
        more = f", and {len(self.unused) - len(said)} more" if len(self.unused) > len(said) else ""
        if others:
            out.append(f"keys with content that are not used: {', '.join(others)}{more}.")
        if metadata:
            out.append(f"keys that only describe a record, not used: {', '.join(metadata)}.")
        return out


class Tally:
    """Counts what is met while a file is encoded, and writes the report of bad records."""

    def __init__(self, path: Path, report: Path | None) -> None:
        self.path, self.report = path, report
        self.file: BinaryIO | None = None
        self.bad, self.empty_answers, self.endless, self.written = 0, 0, 0, 0
        self.first_bad: list[str] = []
        self.unused: Counter[str] = Counter()

    def skip(self, kind: str, skipped: Skipped) -> None:
        """A record that is left out; `kind` is what its number counts, `line` or `item`."""
        self.bad += skipped.records
        if len(self.first_bad) < _SHOWN:
            self.first_bad.append(f"{kind} {skipped.number}: {skipped.reason}")
        if self.report is not None and self.written < REPORT_BYTES:
            if self.file is None:
                self.report.parent.mkdir(parents=True, exist_ok=True)
                self.file = open(self.report, "wb")  # noqa: SIM115  account() ends it
            self.written += self.file.write(report_lines(self.path, kind, [skipped]))

    def account(self) -> Account:
        """All of it, after the last record; a report of an earlier file is removed where this one has nothing to report."""
        if self.file is not None:
            self.file.close()
        elif self.report is not None:
            self.report.unlink(missing_ok=True)
        return Account(self.bad, self.first_bad, self.empty_answers, self.endless, dict(self.unused.most_common()))


def read_records(path: Path) -> Iterator[tuple[str, int, dict[str, Any] | Skipped]]:
    """(`line` or `item`, number from 1, record, or why there is none) of a JSON list or JSON Lines; blank lines are passed over.

    Raises UserError for a file that does not exist, and ValueError for a damaged archive.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist; give a JSON list or JSON Lines file.")
    for chunk in read_chunks([path]):
        for number, record in enumerate(chunk.records, start=chunk.first):
            if isinstance(record, bytes) and not record.strip():
                continue
            try:
                yield chunk.kind, number, _parsed(record)
            except (ValueError, RecursionError) as error:
                yield chunk.kind, number, Skipped(number, str(error))
        if chunk.lost is not None:
            yield chunk.kind, chunk.lost.number, chunk.lost


def _parsed(record: Any) -> dict[str, Any]:
    """A line, or an item of a list, as an object. ValueError, one phrase, where it is none."""
    value = json.loads(record) if isinstance(record, bytes) else record
    if not isinstance(value, dict):
        raise ValueError(f"it is a {type(value).__name__}, it must be an object")
    return value


def encode_file(path: Path, tokenizer: Tokenizer, template: str, tally: Tally) -> Iterator[Encoded]:
    """Every usable record's ids and learnt marks; the others go to `tally`."""
    from tqdm import tqdm

    encode = encoder(template, tokenizer)
    records = tqdm(read_records(path), desc=f"tokenizing {path.name}", unit=" samples", file=sys.stderr, delay=3)
    for kind, number, record in records:
        if isinstance(record, Skipped):
            tally.skip(kind, record)
            continue
        try:
            encoded = encode(record)
            unused, empty = list(unused_keys(record)), answers_without_text(record)
        except (ValueError, RecursionError) as error:
            tally.skip(kind, Skipped(number, str(error)))
            continue
        tally.unused.update(unused)
        tally.empty_answers += empty
        tally.endless += _is_endless(encoded, tokenizer.answer_end)
        yield encoded


def _is_endless(encoded: Encoded, end: int) -> bool:
    learnt = [i for i, marked in zip(*encoded) if marked]
    return bool(learnt) and end not in learnt


def judge(path: Path, account: Account, samples: int, allowed: float, report: Path | None) -> str:
    """A sentence about the records left out, empty where there are none.

    Raises UserError where they are more than the fraction `allowed` of all, or nothing is left.
    """
    if not account.bad:
        if not samples:
            raise UserError(f"{path} holds no samples; give a JSON list or JSON Lines file with at least one.")
        return ""
    total = account.bad + samples
    where = f"; {report} lists them" if report is not None and report.is_file() else ""
    if not samples or account.bad > allowed * total:
        first = "; ".join(account.first_bad)
        flag = f", or allow more with --max-bad-fraction {min(1.0, 1.01 * account.bad / total):.2g}" if samples else ""
        raise UserError(
            f"{path}: {account.bad} of {total} records cannot be used, more than the allowed fraction {allowed:g}{where}. "
            f"The first: {first}. Mend them{flag}."
        )
    return f"{account.bad} of {total} records cannot be used and are left out{where}."
