"""Raw WuDao → fine-tuning samples: `wudao_train.json` and `wudao_valid.json`."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_patch.data.documents import Skipped, read_chunks, texts_of
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
    written = {TRAIN: 0, VALID: 0}
    skipped: list[Skipped] = []
    try:
        with (
            open(partial[TRAIN], "wb") as train,
            open(partial[VALID], "wb") as valid,
            open(partial[REPORT], "wb") as report,
        ):
            outputs = {TRAIN: train, VALID: valid}
            for chunk in read_chunks(files):
                texts, bad = texts_of(chunk, keys, CLEANERS[clean])
                report.write(report_lines(files[chunk.file], chunk.kind, bad))
                skipped += bad
                for number, text in texts:
                    sample = {
                        "instruction": _title(chunk.records[number - chunk.first]),
                        "input": "",
                        "content": text,
                    }
                    name = VALID if zlib.crc32(text.encode()) < valid_fraction * 2**32 else TRAIN
                    outputs[name].write((",\n" if written[name] else "[\n").encode() + _dump(sample))
                    written[name] += 1
            for name, file in outputs.items():
                file.write(b"\n]\n" if written[name] else b"[]\n")
        counts = SplitCounts(
            written[TRAIN],
            written[VALID],
            sum(s.records for s in skipped if not s.empty),
            sum(s.empty for s in skipped),
        )
        os.replace(partial[REPORT], folder / REPORT)
        check_bad_fraction(counts.bad, counts.train + counts.valid, max_bad_fraction, folder / REPORT)
        for name in outputs:
            os.replace(partial[name], folder / name)
    finally:
        for path in partial.values():
            path.unlink(missing_ok=True)
    return counts


def _title(record: Any) -> str:
    record = json.loads(record) if isinstance(record, bytes) else record
    title = record.get("title")
    return title if isinstance(title, str) else ""


def _dump(sample: dict[str, str]) -> bytes:
    return json.dumps(sample, ensure_ascii=False).encode("utf-8", "backslashreplace")
