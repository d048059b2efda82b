"""A fine-tuning file → encoded samples, and an account of what of it was not used.

A record that cannot be used is left out, and a line of JSON with file, number and reason goes into a report, as preparation does
with documents. Keys that no template reads are counted by name.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from megatron_patch.data.conversation import METADATA, answers, is_empty_answer, unused_keys
from megatron_patch.data.prompts import Encoded, encoder
from megatron_patch.data.tokenizer import Tokenizer
from megatron_patch.errors import UserError
from megatron_patch.formats.json_files import one_line, whole_in
from megatron_patch.records.documents import REPORT_BYTES, Skipped, read_chunks, report_lines

_SHOWN = 3  # bad records that an error quotes
_SHOWN_KEYS = 20


@dataclass(frozen=True)
class Account:
    """The records of a file that were not used. Plain values, because they are stored beside the tokens."""

    bad: int = 0  # records left out; an estimate where a JSON list breaks off
    first_bad: list[str] = field(default_factory=list)
    empty_answers: int = 0  # samples with an answer without text, of which nothing is learnt
    unanswered: int = 0  # samples in which nothing is to be learnt: they have no answer, or only such of weight 0
    endless: int = 0  # samples whose answers hold no end token: the folder's chat template writes none
    unused: dict[str, int] = field(default_factory=dict)  # key → records that have it with content

    @classmethod
    def read(cls, plain: dict[str, Any]) -> Account:
        """The account that `dataclasses.asdict` made these values of. UserError where it did not."""
        account = cls()
        if set(plain) != set(asdict(account)):
            raise UserError(f"its account has the fields {one_line(', '.join(plain))}")
        for name in ("bad", "empty_answers", "unanswered", "endless"):
            whole_in(plain, name, 0, 1 << 62)
        if not isinstance(plain["first_bad"], list) or not all(isinstance(text, str) for text in plain["first_bad"]):
            raise UserError("first_bad is no list of texts")
        if not isinstance(plain["unused"], dict):
            raise UserError("unused is no object")
        for name in plain["unused"]:
            whole_in(plain["unused"], name, 1, 1 << 62)
        return cls(**plain)

    def lines(self) -> list[str]:
        """Sentences for the console, but for the bad records."""
        out = []
        if self.empty_answers:
            has = "has" if self.empty_answers == 1 else "have"
            out.append(f"{counted(self.empty_answers)} {has} an empty answer, which teaches nothing, not even to end.")
        if self.unanswered:
            has, teach = ("has", "teaches") if self.unanswered == 1 else ("have", "teach")
            out.append(f"{counted(self.unanswered)} {has} no answer, or answers of weight 0 alone, and {teach} nothing.")
        if self.endless:
            out.append(
                f"WARNING: the answers of {counted(self.endless)} hold no end token that the folder's model waits for, since its "
                "chat template writes none; choose another --template, or mend that one or the folder's eos_token_id."
            )
        said = {name: f"{name!r} ({counted(count, 'record')})" for name, count in list(self.unused.items())[:_SHOWN_KEYS]}
        others = [text for name, text in said.items() if name not in METADATA]
        metadata = [text for name, text in said.items() if name in METADATA]
        more = f", and {len(self.unused) - len(said)} more" if len(self.unused) > len(said) else ""
        if others:
            out.append(f"keys with content that are not used: {', '.join(others)}{more}.")
        if metadata:
            out.append(f"keys that only describe a record, not used: {', '.join(metadata)}.")
        return out


def counted(number: int, what: str = "sample") -> str:
    """`1 sample`, `2 samples`."""
    return f"{number} {what}{'' if number == 1 else 's'}"


class Tally:
    """Counts what is met while a file is encoded, and writes the report of bad records."""

    def __init__(self, path: Path, report: Path | None) -> None:
        self.path, self.report = path, report
        self.file: BinaryIO | None = None
        self.bad, self.empty_answers, self.unanswered, self.endless, self.written = 0, 0, 0, 0, 0
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
        unused = dict(self.unused.most_common())
        return Account(self.bad, self.first_bad, self.empty_answers, self.unanswered, self.endless, unused)


def read_records(path: Path) -> Iterator[tuple[str, int, dict[str, Any] | Skipped]]:
    """(`line` or `item`, number from 1, record, or why there is none) of a JSON list or JSON Lines; blank lines are passed over.

    Raises UserError for a file that does not exist, and for a damaged archive.
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
    """A line, or an item of a list, as an object. UserError, one phrase, where it is none."""
    try:
        value = json.loads(record) if isinstance(record, bytes) else record
    except json.JSONDecodeError as error:  # its own message counts lines within this one
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
            unused, said = list(unused_keys(record)), answers(record)
        except (UserError, RecursionError) as error:
            tally.skip(kind, Skipped(number, str(error)))
            continue
        tally.unused.update(unused)
        tally.empty_answers += any(map(is_empty_answer, said))
        tally.unanswered += not said
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
    listed = report is not None and report.is_file()
    where = f"; {report} lists {'it' if account.bad == 1 else 'them'}" if listed else ""
    if not samples or account.bad > allowed * total:
        first = "; ".join(account.first_bad)
        flag = f", or allow more with --max-bad-fraction {min(1.0, 1.01 * account.bad / total):.2g}" if samples else ""
        raise UserError(
            f"{path}: {account.bad} of {total} records cannot be used, more than the allowed fraction {allowed:g}{where}. "
            f"The first: {first}. Mend them{flag}."
        )
    where = where or f"; the first: {'; '.join(account.first_bad)}"
    return f"{account.bad} of {total} records cannot be used and {'is' if account.bad == 1 else 'are'} left out{where}."
