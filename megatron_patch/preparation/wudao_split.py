"""Raw WuDao → fine-tuning samples: `wudao_train.json` and `wudao_valid.json`."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from megatron_patch.errors import UserError, naming
from megatron_patch.formats.progress import Progress
from megatron_patch.preparation.partial_pair import check_bad_fraction, require_apart
from megatron_patch.preparation.wudao import CLEANERS
from megatron_patch.records.chunks import START, Chunk, can_be_cut, read_chunks
from megatron_patch.records.files import find_files
from megatron_patch.records.skipped import MAX_DOCUMENT_MB, MEGABYTE, REPORT_BYTES, Skipped, report_lines
from megatron_patch.records.texts import require_unicode, texts_of

TRAIN, VALID, REPORT = "wudao_train.json", "wudao_valid.json", "wudao_skipped.jsonl"


@dataclass(frozen=True)
class SplitCounts:
    """Samples in the two files, and records that gave none: `bad` ones were lost, `empty` ones lose nothing."""

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
    overwrite: bool = False,
    max_document_mb: int = MAX_DOCUMENT_MB,
) -> SplitCounts:
    """Write both files into `folder`, each a JSON list of `instruction`, `input` and `content`.

    `instruction` is the record's `title`, or empty; `input` is empty; `content` is its text. The original's samples are
    the same, but their instruction was always empty. A record's text alone decides whether it goes into validation. So
    added files move no record, and equal texts stay together. The files get their names when both are whole.

    Args:
        keys: a record's text is the value of the first of these keys that it has.
        clean: a name in wudao.CLEANERS.
        valid_fraction: share of the texts for validation, at least 0 and below 1.
        max_bad_fraction: share of the records that may be bad.
        overwrite: replace a split that is there.
        max_document_mb: 10^6 bytes that a record may have; a longer one is bad.

    Raises:
        UserError: input or folder cannot be used, an output is an input, a split is there already, or too many records
            are bad.
    """
    if not 0 <= valid_fraction < 1:
        raise UserError(f"the validation fraction is {valid_fraction}; it must be at least 0 and below 1.")
    files, folder = find_files(list(inputs)), Path(folder)
    require_free(files, folder, overwrite)
    folder.mkdir(parents=True, exist_ok=True)
    partial = {name: folder / f"{name}.partial" for name in (TRAIN, VALID, REPORT)}
    try:
        with ExitStack() as stack:
            outputs = {name: stack.enter_context(open(path, "wb")) for name, path in partial.items()}
            chunks = read_chunks(files, START, max_document_mb * MEGABYTE, columns=(*keys, "title"))
            counts = _write_samples(files, chunks, outputs, keys, clean, valid_fraction)
        os.replace(partial[REPORT], folder / REPORT)
        check_bad_fraction(counts.bad, counts.train + counts.valid, max_bad_fraction, folder / REPORT)
        # An old validation part beside the new training part could hold the same texts.
        (folder / VALID).unlink(missing_ok=True)
        for name in (TRAIN, VALID):
            os.replace(partial[name], folder / name)
    finally:
        for path in partial.values():
            path.unlink(missing_ok=True)
    return counts


def require_free(files: Iterable[Path], folder: Path, overwrite: bool) -> None:
    """Check that `folder` holds no split, unless `overwrite`, and that no file of a split there is an input.

    Raises:
        UserError: it does, or one is.
    """
    require_apart(files, [folder / name for name in (TRAIN, VALID, REPORT)])
    there = [str(folder / name) for name in (TRAIN, VALID) if (folder / name).exists()]
    if there and not overwrite:
        raise UserError(f"{' and '.join(there)} exist; choose another folder, remove them, or add --overwrite to replace them.")


def _write_samples(
    files: list[Path], chunks: Iterable[Chunk], outputs: Mapping[str, BinaryIO], keys: tuple[str, ...], clean: str,
    valid_fraction: float,
) -> SplitCounts:  # fmt: skip
    """Write every record into the training or the validation list, or into the report."""
    written, bad, empty = {TRAIN: 0, VALID: 0}, 0, 0
    total = sum(path.stat().st_size for path in files) if all(map(can_be_cut, files)) else None
    for chunk in _counted(chunks, total):
        samples, skipped = _samples(chunk, keys, clean)
        if outputs[REPORT].tell() < REPORT_BYTES:
            outputs[REPORT].write(report_lines(files[chunk.file], chunk.kind, skipped))
        bad += sum(s.records for s in skipped if not s.empty)
        empty += sum(s.records for s in skipped if s.empty)
        for sample in samples:
            name = VALID if zlib.crc32(sample["content"].encode()) < valid_fraction * 2**32 else TRAIN
            with naming(outputs[name].name):
                outputs[name].write((",\n" if written[name] else "[\n").encode() + _dump(sample))
            written[name] += 1
    for name, count in written.items():
        outputs[name].write(b"\n]\n" if count else b"[]\n")
    return SplitCounts(written[TRAIN], written[VALID], bad, empty)


def _counted(chunks: Iterable[Chunk], total: int | None) -> Iterator[Chunk]:
    """The chunks, their bytes shown as they are asked for; `total` is None where nobody knows how many there are."""
    with Progress("reading", total) as progress:
        for chunk in chunks:
            yield chunk
            progress.add(chunk.size)


def _samples(chunk: Chunk, keys: tuple[str, ...], clean: str) -> tuple[list[dict[str, str]], list[Skipped]]:
    """The samples of a chunk's records, and the records that gave none."""
    texts, skipped = texts_of(chunk, keys, CLEANERS[clean])
    records, samples = list(chunk.records), []
    for number, text in texts:
        try:
            title = _title(records[number - chunk.first])
        except UserError as error:
            skipped.append(Skipped(number, f"its 'title': {error}"))
            continue
        samples.append({"instruction": title, "input": "", "content": text})
    return samples, sorted(skipped, key=lambda s: s.number)


def _title(record: Any) -> str:
    """The record's title; empty without one.

    Raises:
        UserError: one phrase: it is not Unicode.
    """
    record = json.loads(record) if isinstance(record, bytes) else record
    title = record.get("title")
    return require_unicode(title) if isinstance(title, str) else ""


def _dump(sample: dict[str, str]) -> bytes:
    """A sample as one line of JSON in UTF-8."""
    return json.dumps(sample, ensure_ascii=False).encode()
