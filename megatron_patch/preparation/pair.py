"""Data files → PREFIX.bin and PREFIX.idx: streaming, in several processes, in the order of the input, to be
gone on with.

The main process reads chunks of about a MiB and writes results in the chunks' order; workers parse, clean and
tokenize. What is finished so far lies in `PREFIX.partial/` (tokens, lengths, skipped records) with a
`state.json` that says how much of it counts: a run that was killed is gone on with behind the last state. The
pair gets its names when all is done. An old pair that it replaces stays until then; its `.idx` goes first and the
new one comes last, so that no moment shows the `.idx` of one pair beside the `.bin` of another.

Beside the pair: `PREFIX_skipped.jsonl`, a line for each record that gave no document (file, number, reason),
and `PREFIX.made`, the counts and what they were made from, as JSON under a name that no data file has.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from megatron_patch.data.tokenizer import Tokenizer, load_tokenizer
from megatron_patch.errors import UserError
from megatron_patch.formats.json_files import json_object, one_line, whole_in
from megatron_patch.preparation.encoding import ChunkResult, Settings, encode_chunks
from megatron_patch.records.chunks import START, Chunk, Place, read_chunks
from megatron_patch.records.files import find_files
from megatron_patch.records.indexed import token_dtype, write_index
from megatron_patch.records.skipped import MAX_DOCUMENT_MB, MEGABYTE, REPORT_BYTES, report_lines

FORMAT = "megatron_patch preprocess 1"
_STATE_BYTES = 64 << 20  # input between two states: what a killed run may lose


@dataclass(frozen=True)
class Counts:
    """How far a run is. `bad`: records lost, an estimate where a JSON list breaks off; `empty`: empty
    records, nothing lost.
    """

    place: Place = START
    documents: int = 0
    tokens: int = 0
    bad: int = 0
    empty: int = 0
    size: int = 0  # bytes of input
    report_bytes: int = 0  # of the skipped records' report

    def lines(self, prefix: str) -> list[str]:
        """Sentences for the console."""
        out = [f"{prefix}: {self.documents} documents, {self.tokens} tokens from {self.size / 1e6:.1f} MB."]
        if self.bad or self.empty:
            out.append(
                f"{self.bad} bad and {self.empty} empty records gave no document; "
                f"{prefix}_skipped.jsonl lists {'the first of ' if self.report_bytes >= REPORT_BYTES else ''}them."
            )
        return out


def preprocess(
    inputs: Iterable[str | Path],
    prefix: str | Path,
    settings: Settings,
    *,
    workers: int = 1,
    max_bad_fraction: float = 0.001,
    overwrite: bool = False,
) -> Counts:
    """Make the pair at `prefix`, or finish one that was begun, or find that it is there already.

    Raises UserError for input, tokenizer or folder that cannot be used, for an output that is an input, for a
    `prefix` that holds another pair (`overwrite` allows it), and where more than `max_bad_fraction` of the records
    are bad; then the report is written and no pair, and an old pair stays.
    """
    files, prefix = find_files(list(inputs)), str(prefix)
    require_apart(files, output_paths(prefix))
    tokenizer = load_tokenizer(settings.tokenizer_folder)
    if tokenizer.separator_note:
        print(f"{prefix}: {tokenizer.separator_note}", file=sys.stderr)
    made_from = _made_from(files, settings, tokenizer)
    finished = _finished(prefix, made_from, overwrite)
    if finished:
        return finished
    partial = Path(prefix + ".partial")
    partial.mkdir(parents=True, exist_ok=True)
    with _only_run(partial):
        counts = _resume(partial, made_from, prefix)
        _require_whole(partial, prefix, counts, token_dtype(tokenizer.vocab_size).itemsize)
        counts = _encode_all(files, partial, counts, made_from, settings, tokenizer, workers)
        _finish(partial, prefix, counts, made_from, token_dtype(tokenizer.vocab_size), max_bad_fraction)
    shutil.rmtree(partial)
    return counts


def record_path(prefix: str) -> Path:
    """Where the counts of the pair at `prefix` stand, and what it was made from."""
    return Path(prefix + ".made")


def output_paths(prefix: str) -> list[Path]:
    """Every file that a run for `prefix` leaves."""
    return [Path(prefix + end) for end in (".bin", ".idx", "_skipped.jsonl")] + [record_path(prefix)]


def require_apart(files: Iterable[Path], outputs: Iterable[Path]) -> None:
    """UserError where an output is one of the input's files, by whatever name."""
    there = [path for path in outputs if path.exists()]
    for file in files:
        for path in there:
            if os.path.samefile(file, path):
                raise UserError(f"{path} is read as input and would be written over; choose another output, or move that file.")


def _made_from(files: list[Path], settings: Settings, tokenizer: Tokenizer) -> dict[str, Any]:
    stats = [[f.name, f.stat().st_size, f.stat().st_mtime_ns] for f in files]
    chosen = {k: v for k, v in asdict(settings).items() if k != "tokenizer_folder"} | {"tokenizer": tokenizer.fingerprint}
    if settings.max_document_mb == MAX_DOCUMENT_MB:  # so that pairs made before there was this setting are known again
        del chosen["max_document_mb"]
    return json.loads(json.dumps({"format": FORMAT, "files": stats} | chosen))


def _finished(prefix: str, made_from: dict[str, Any], overwrite: bool) -> Counts | None:
    """The counts of a pair that this very input made; None where one is to be made or finished. Removes nothing."""
    there = [prefix + end for end in (".bin", ".idx") if os.path.exists(prefix + end)]
    record, state = _saved(record_path(prefix)), _saved(Path(prefix + ".partial", "state.json"))
    own, begun = (saved is not None and saved.made_from == made_from for saved in (record, state))
    if len(there) == 2 and record is not None and own and not begun:
        print(
            f"{prefix}.bin and .idx are there already, made from this very input; nothing is done.",
            file=sys.stderr,
        )
        return record.counts
    # A run of this input that was killed as it named its files leaves one of them, or both and its record.
    naming = begun and (len(there) == 1 or own)
    if there and not naming and not overwrite:
        raise UserError(f"{' and '.join(there)} exist, made from other input; remove them, or add --overwrite.")
    return None


@dataclass(frozen=True)
class Record:
    """PREFIX.made or a state: what a pair is made from, and how far."""

    made_from: dict[str, Any]
    counts: Counts


def read_record(path: Path) -> Record:
    """A record or a state that a run of preparation wrote.

    Raises UserError: it is no JSON object, or holds other things than such a run writes.
    """
    content = json_object(path)
    try:
        made_from, counts = content["made_from"], dict(content["counts"])
        place = counts.pop("place")
        for numbers, names in ((counts, Counts), (place, Place)):
            for field in fields(names):
                if field.name != "place":
                    whole_in(numbers, field.name, 0, 1 << 62)
        if not isinstance(made_from, dict) or not isinstance(made_from["files"], list):
            raise UserError("made_from is no object with files")
        return Record(made_from, Counts(place=Place(**place), **counts))
    except (KeyError, TypeError, ValueError) as error:
        why = one_line(error)
        raise UserError(f"{path} is no record of a preparation ({why}); remove it, and prepare the data again.") from None


def _saved(path: Path) -> Record | None:
    """None where there is no such file."""
    return read_record(path) if path.is_file() else None


def _resume(partial: Path, made_from: dict[str, Any], prefix: str) -> Counts:
    """What an earlier run finished, files cut back to it; zero where there is none or it was another run's.

    One that read its input to the end was not interrupted: it was refused for its bad records, or killed as it named its files.
    """
    state = partial / "state.json"
    if not (saved := _saved(state)):
        return Counts()
    counts = saved.counts
    if saved.made_from != made_from:
        state.unlink()
        print(f"{prefix}: an earlier run had other input or settings; beginning anew.", file=sys.stderr)
        return Counts()
    if counts.place.file >= len(made_from["files"]):
        print(f"{prefix}: the {counts.documents} documents of an earlier run are used.", file=sys.stderr)
    else:
        print(f"{prefix}: going on after {counts.documents} documents of an interrupted run.", file=sys.stderr)
    return counts


def _require_whole(partial: Path, prefix: str, counts: Counts, itemsize: int) -> None:
    """UserError where the partial files are shorter than the state says, so that no gap is filled with zeros."""
    for name, size in (("tokens", counts.tokens * itemsize), ("lengths", counts.documents * 4), ("skipped", counts.report_bytes)):
        path = partial / name
        if name == "tokens" and not path.is_file():  # a run that was killed as it named its files
            path = Path(prefix + ".bin")
        has = path.stat().st_size if path.is_file() else 0
        if has < size:
            raise UserError(f"{path} has {has} bytes, and {partial}/state.json says {size}; remove {partial} to begin anew.")


def _encode_all(
    files: list[Path], partial: Path, counts: Counts, made_from: dict[str, Any],
    settings: Settings, tokenizer: Tokenizer, workers: int,
) -> Counts:  # fmt: skip
    """Everything behind `counts.place` into the partial files."""
    from tqdm import tqdm

    if counts.place.file >= len(files):
        return counts
    itemsize = token_dtype(tokenizer.vocab_size).itemsize
    plain = all(f.name.endswith((".jsonl", ".json")) for f in files)
    bar = tqdm(
        desc="tokenizing", unit="B", unit_scale=True, file=sys.stderr, delay=3, initial=counts.size,
        total=sum(f.stat().st_size for f in files) if plain else None,
    )  # fmt: skip
    stated = counts.size
    chunks = read_chunks(files, counts.place, settings.max_document_mb * MEGABYTE)
    with (
        bar,
        # Closed at once, however this block is left: the workers end with it.
        closing(encode_chunks(chunks, settings, tokenizer, workers)) as results,
        _open_at(partial / "tokens", counts.tokens * itemsize) as tokens,
        _open_at(partial / "lengths", counts.documents * 4) as lengths,
        _open_at(partial / "skipped", counts.report_bytes) as report,
    ):
        for chunk, result in results:
            tokens.write(result.tokens)
            lengths.write(result.lengths.tobytes())
            lines = b""
            if counts.report_bytes < REPORT_BYTES:
                lines = report_lines(files[chunk.file], chunk.kind, result.skipped)
            report.write(lines)
            counts = _advance(counts, chunk, result, itemsize, len(lines))
            bar.update(chunk.size)
            if counts.size - stated >= _STATE_BYTES:
                _save_state(partial, counts, made_from, tokens, lengths, report)
                stated = counts.size
        counts = replace(counts, place=Place(len(files)))
        _save_state(partial, counts, made_from, tokens, lengths, report)
    return counts


def _advance(counts: Counts, chunk: Chunk, result: ChunkResult, itemsize: int, report_bytes: int) -> Counts:
    return Counts(
        place=chunk.after,
        documents=counts.documents + len(result.lengths),
        tokens=counts.tokens + len(result.tokens) // itemsize,
        bad=counts.bad + sum(s.records for s in result.skipped if not s.empty),
        empty=counts.empty + sum(s.records for s in result.skipped if s.empty),
        size=counts.size + chunk.size,
        report_bytes=counts.report_bytes + report_bytes,
    )


def _save_state(partial: Path, counts: Counts, made_from: dict[str, Any], *files: Any) -> None:
    """Make the partial files durable, then say how much of them counts."""
    for file in files:
        file.flush()
        os.fsync(file.fileno())
    _write_json(partial / "state.json", {"made_from": made_from, "counts": asdict(counts)})


def _finish(
    partial: Path,
    prefix: str,
    counts: Counts,
    made_from: dict[str, Any],
    dtype: np.dtype,
    max_bad_fraction: float,
) -> None:
    """Judge the counts, then give the files their names, the `.idx` last. Can be done again at any point.

    From the moment that a replaced pair's `.idx` is gone there is none until its `.bin` is the new one.
    """
    if (partial / "skipped").exists() and counts.report_bytes:
        shutil.copyfile(partial / "skipped", prefix + "_skipped.jsonl")
    elif os.path.exists(prefix + "_skipped.jsonl"):
        os.remove(prefix + "_skipped.jsonl")
    check_bad_fraction(counts.bad, counts.documents, max_bad_fraction, Path(prefix + "_skipped.jsonl"))
    if not counts.documents:
        raise UserError("the input holds no document; nothing is written. Check the files and --json-key.")
    with open(partial / "index", "wb") as file:
        write_index(file, np.memmap(partial / "lengths", dtype=np.int32, mode="r", shape=(counts.documents,)), dtype)
        file.flush()
        os.fsync(file.fileno())
    renamed = not (partial / "tokens").exists()  # a killed run came so far
    if not renamed:
        Path(prefix + ".idx").unlink(missing_ok=True)
    _write_json(record_path(prefix), {"made_from": made_from, "counts": asdict(counts)})
    if not renamed:
        os.replace(partial / "tokens", prefix + ".bin")
    os.replace(partial / "index", prefix + ".idx")


def check_bad_fraction(bad: int, good: int, allowed: float, report: Path) -> None:
    """UserError where `bad` is more than the `allowed` fraction of all records, empty ones left out."""
    fraction = bad / max(1, bad + good)
    if fraction > allowed:
        raise UserError(
            f"{bad} of {bad + good} records are bad, more than the allowed fraction {allowed:g}; "
            f"{report} lists them. Mend them, or run again with --max-bad-fraction {fraction * 1.01:.2g}."
        )


@contextmanager
def _open_at(path: Path, size: int) -> Iterator[Any]:
    """A file to be written on from its byte `size`, what follows cut off."""
    with open(path, "r+b" if path.exists() else "w+b") as file:
        file.truncate(size)
        file.seek(size)
        yield file


@contextmanager
def _only_run(partial: Path) -> Iterator[None]:
    """Refuse a second run on the same prefix at the same time."""
    with open(partial / "lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"another run is writing {partial} now; wait for it, or choose another output.") from error
        yield


def _write_json(path: Path, value: Any) -> None:
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(value, file, ensure_ascii=False, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
