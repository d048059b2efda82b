"""What a JSON file's samples come to: counts, the records that were left out, and the sentences about them.

A record that cannot be used is left out, and a line of JSON with file, number and reason goes into a report, as
preparation does with documents. Keys that no template reads are counted by name.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from megatron_patch.data.conversation import METADATA
from megatron_patch.data.packing import Groups
from megatron_patch.data.token_cache import TokenTable
from megatron_patch.errors import UserError
from megatron_patch.formats.json_files import one_line, whole_in
from megatron_patch.records.skipped import REPORT_BYTES, Skipped, report_lines

_SHOWN = 3  # bad records that an error quotes
_SHOWN_KEYS = 20
_WHOLE = 0.95  # share of the samples that an advised PAD_LEN keeps whole


@dataclass(frozen=True)
class Account:
    """What of a file was not used. Plain values, because the token cache stores them beside the tokens.

    Attributes:
        bad: records left out; an estimate if a JSON list breaks off.
        first_bad: number and reason of the first three.
        empty_answers: samples with an answer without text, of which nothing is learnt.
        unanswered: samples with no answer, or with answers of weight 0 alone.
        endless: samples whose answers hold no end token, because the folder's chat template writes none.
        unused: key that no template reads → number of records that have it with content.
    """

    bad: int = 0
    first_bad: list[str] = field(default_factory=list)
    empty_answers: int = 0
    unanswered: int = 0
    endless: int = 0
    unused: dict[str, int] = field(default_factory=dict)

    @classmethod
    def read(cls, plain: dict[str, Any]) -> Account:
        """The account of which `dataclasses.asdict` made these values.

        Raises:
            UserError: no account has such values.
        """
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
        """Sentences for the console. The bad records are not in them; `judge` says those."""
        out = []
        if self.empty_answers:
            out.append(f"{_that_have(self.empty_answers)} an empty answer, which teaches nothing, not even to end.")
        if self.unanswered:
            teach = "teaches" if self.unanswered == 1 else "teach"
            out.append(f"{_that_have(self.unanswered)} no answer, or answers of weight 0 alone, and {teach} nothing.")
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
    """`1 sample`, `2 samples`, …"""
    return f"{number} {what}{'' if number == 1 else 's'}"


def _that_have(number: int) -> str:
    """`1 sample has`, `2 samples have`, …"""
    return f"{number} sample has" if number == 1 else f"{number} samples have"


class Tally:
    """Counts what is met while a file is encoded, and writes the report of bad records.

    Args:
        path: the file.
        report: where the report goes; None writes none.
    """

    def __init__(self, path: Path, report: Path | None) -> None:
        self.path, self.report = path, report
        self.file: BinaryIO | None = None
        self.bad, self.empty_answers, self.unanswered, self.endless, self.written = 0, 0, 0, 0, 0
        self.first_bad: list[str] = []
        self.unused: Counter[str] = Counter()

    def skip(self, kind: str, skipped: Skipped) -> None:
        """Count a record that is left out, and report it. `kind` is what its number counts, `line` or `item`."""
        self.bad += skipped.records
        if len(self.first_bad) < _SHOWN:
            self.first_bad.append(f"{kind} {skipped.number}: {skipped.reason}")
        if self.report is not None and self.written < REPORT_BYTES:
            if self.file is None:
                self.report.parent.mkdir(parents=True, exist_ok=True)
                self.file = open(self.report, "wb")  # noqa: SIM115  account() ends it
            self.written += self.file.write(report_lines(self.path, kind, [skipped]))

    def account(self) -> Account:
        """End the report and return the counts. Call after the last record.

        A report of an earlier file is removed if this one has nothing to report.
        """
        if self.file is not None:
            self.file.close()
        elif self.report is not None:
            self.report.unlink(missing_ok=True)
        unused = dict(self.unused.most_common())
        return Account(self.bad, self.first_bad, self.empty_answers, self.unanswered, self.endless, unused)


def is_endless(ids: Sequence[int], learnt: Sequence[bool], ends: frozenset[int]) -> bool:
    """Whether something of a sample is learnt, and none of the end tokens among it."""
    taught = {i for i, marked in zip(ids, learnt) if marked}
    return bool(taught) and not ends & taught


def judge(path: Path, account: Account, samples: int, allowed: float, report: Path | None) -> str:
    """A sentence about the records that were left out; empty if there are none.

    Args:
        samples: number of records that can be used.
        allowed: fraction of all records that may be left out.
        report: where they are listed.

    Raises:
        UserError: more are left out than allowed, or nothing is left.
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


@dataclass(frozen=True)
class Report:
    """Counts of a data set's samples. Token counts are those after cutting.

    Attributes:
        length: L, tokens of a sequence.
        account: the file's records that were not used.
        left_out: a sentence about records that cannot be used, or empty.
        samples: their number.
        rows: sequences that training sees; with packing fewer than samples.
        cut: samples longer than L, which lost their rest and their end token.
        without_answer: samples that have something to learn, and nothing of it within L.
        tokens: of all samples.
        learnt: tokens with loss.
        advised: the PAD_LEN (SEQ_LEN with packing) that keeps 95 % of the samples whole.
    """

    path: str
    length: int
    account: Account
    left_out: str = ""
    samples: int = 0
    rows: int = 0
    cut: int = 0
    without_answer: int = 0
    tokens: int = 0
    learnt: int = 0
    advised: int = 0

    @property
    def teaches_nothing(self) -> bool:
        """Whether no token has loss."""
        return self.learnt == 0

    @property
    def why_nothing(self) -> str:
        """A sentence for a data set that teaches nothing: why, and what to do."""
        if self.cut:
            return (
                f"none of its {self.samples} samples has an answer within {self.length} tokens, so there is nothing to learn; "
                f"a PAD_LEN of {self.advised} (SEQ_LEN with --packing) keeps 95 % of them whole."
            )
        return f"its {self.samples} samples have no answer that is not empty or of weight 0, so there is nothing to learn."

    def require_something_to_learn(self) -> None:
        """Check that training on these samples would change something.

        Raises:
            UserError: it would not.
        """
        if self.teaches_nothing:
            raise UserError(f"{self.path}: {self.why_nothing}")

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
            teach = "teaches" if self.without_answer == 1 else "teach"
            out.append(f"{_that_have(self.without_answer)} no answer within {self.length} tokens and {teach} nothing.")
        return out + self.account.lines()


def summary(common: Report, table: TokenTable, groups: Groups) -> Report:
    """The report on the samples of the table that are in `groups`.

    common: what is known of the whole file.
    """
    chosen = groups.order
    sizes, learnt = np.diff(table.offsets)[chosen], table.learnt_counts(common.length)[chosen]
    to_learn = table.learnt_counts(int(sizes.max()))[chosen] if len(sizes) else learnt
    whole = np.sort(sizes)[math.ceil(_WHOLE * len(sizes)) - 1] if len(sizes) else 0
    return replace(
        common,
        samples=len(chosen),
        rows=len(groups),
        cut=int((sizes > common.length).sum()),
        without_answer=int(((learnt == 0) & (to_learn > 0)).sum()),
        tokens=int(np.minimum(sizes, common.length).sum()),
        learnt=int(learnt.sum()),
        advised=int(whole),
    )
