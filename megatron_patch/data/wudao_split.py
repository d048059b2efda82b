"""Raw WuDao → fine-tuning samples: `wudao_train.json` and `wudao_valid.json`."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from megatron_patch.data.documents import read_chunks, texts_of
from megatron_patch.data.preprocess import check_bad_fraction, report_lines
from megatron_patch.data.records import find_files
from megatron_patch.data.wudao import CLEANERS

TRAIN, VALID, REPORT = "wudao_train.json", "wudao_valid.json", "wudao_skipped.jsonl"


@dataclass(frozen=True)
class SplitCounts:
    """Samples in the two files, and records that gave none (`bad` as in preprocess.Counts)."""

    train: int
    valid: int
    bad: int
    empty: int


def split_wudao(
    inputs: Iterable[str | Path],
    folder: str | Path,
    *,
    keys: tuple[str, ...] = ("content", "text"),
    clean: str = "none",
    valid_fraction: float = 0.01,
    max_bad_fraction: float = 0.001,
) -> SplitCounts:
    """Write both files into `folder`, each a JSON list of `instruction`, `input` and `content`.

    `instruction` is the record's `title` (empty without one), `input` is empty, `content` its text: the
    original's samples, whose instruction was always empty, with the title put to use. Whether a record is
    validation is a matter of its text alone, so that it does not move when files are added, and equal texts
    never stand on both sides. The files appear when both are whole. Raises ValueError as `preprocess` does.
    """
    if not 0 <= valid_fraction < 1:
        raise ValueError(f"the validation fraction is {valid_fraction}; it must be at least 0 and below 1.")
    files, folder = find_files(list(inputs)), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    partial = {name: folder / f"{name}.partial" for name in (TRAIN, VALID, REPORT)}
    try:
        with ExitStack() as stack:
            outputs = {name: stack.enter_context(open(path, "wb")) for name, path in partial.items()}
            counts = _write_samples(files, outputs, keys, clean, valid_fraction)
        os.replace(partial[REPORT], folder / REPORT)
        check_bad_fraction(counts.bad, counts.train + counts.valid, max_bad_fraction, folder / REPORT)
        for name in (TRAIN, VALID):
            os.replace(partial[name], folder / name)
    finally:
        for path in partial.values():
            path.unlink(missing_ok=True)
    return counts


def _write_samples(
    files: list[Path], outputs: dict[str, BinaryIO], keys: tuple[str, ...], clean: str, valid_fraction: float
) -> SplitCounts:
    """Every record into the training or the validation list, or into the report."""
    written, bad, empty = {TRAIN: 0, VALID: 0}, 0, 0
    for chunk in read_chunks(files):
        texts, skipped = texts_of(chunk, keys, CLEANERS[clean])
        outputs[REPORT].write(report_lines(files[chunk.file], chunk.kind, skipped))
        bad += sum(s.records for s in skipped if not s.empty)
        empty += sum(s.empty for s in skipped)
        for number, text in texts:
            title = _title(chunk.records[number - chunk.first])
            sample = {"instruction": title, "input": "", "content": text}
            name = VALID if zlib.crc32(text.encode()) < valid_fraction * 2**32 else TRAIN
            outputs[name].write((",\n" if written[name] else "[\n").encode() + _dump(sample))
            written[name] += 1
    for name, count in written.items():
        outputs[name].write(b"\n]\n" if count else b"[]\n")
    return SplitCounts(written[TRAIN], written[VALID], bad, empty)


def _title(record: Any) -> str:
    record = json.loads(record) if isinstance(record, bytes) else record
    title = record.get("title")
    return title if isinstance(title, str) else ""


def _dump(sample: dict[str, str]) -> bytes:
    return json.dumps(sample, ensure_ascii=False).encode("utf-8", "backslashreplace")
