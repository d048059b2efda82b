"""Data files → PREFIX.bin and PREFIX.idx, streaming, in several processes, in the order of the input.

The main process reads chunks of about a MiB and writes results in the chunks' order. Workers parse, clean and tokenize.

A run that was killed can go on. What is finished lies in `PREFIX.partial/`: tokens, lengths, skipped records, and a
`state.json` that says how much of them counts. The next run goes on behind the last state. The pair gets its names when
everything is done. An old pair that it replaces stays until then. Its `.idx` goes first and the new one comes last, so
at no moment does the `.idx` of one pair stand beside the `.bin` of another.

Two files lie beside the pair. `PREFIX_skipped.jsonl` has a line for each record that gave no document: file, number,
reason. `PREFIX.made` holds the counts and what they were made from, as JSON under a name that no data file has.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from megatron_patch.data.tokenizer import Tokenizer, load_tokenizer
from megatron_patch.errors import UserError, naming
from megatron_patch.preparation.encoding import ChunkResult, Settings, encode_chunks
from megatron_patch.preparation.resumable_state import Counts, made_from_of, record_path, saved_record, write_record
from megatron_patch.records.chunks import Chunk, Place, read_chunks
from megatron_patch.records.files import find_files
from megatron_patch.records.indexed import token_dtype, write_index
from megatron_patch.records.skipped import MEGABYTE, REPORT_BYTES, report_lines

_STATE_BYTES = 64 << 20  # bytes of input between two states; a killed run loses at most these


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

    Args:
        workers: processes that tokenize; 1 tokenizes in this one.
        max_bad_fraction: share of the records that may be bad. Beyond it the report is written and no pair, and an old
            pair stays.
        overwrite: replace a pair that was made from other input.

    Raises:
        UserError: input, tokenizer or folder cannot be used; an output is an input; `prefix` holds another pair; or too
            many records are bad.
    """
    files, prefix = find_files(list(inputs)), str(prefix)
    require_apart(files, output_paths(prefix))
    tokenizer = load_tokenizer(settings.tokenizer_folder)
    if tokenizer.separator_note:
        print(f"{prefix}: {tokenizer.separator_note}", file=sys.stderr)
    made_from = made_from_of(files, settings, tokenizer)
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


def output_paths(prefix: str) -> list[Path]:
    """Every file that a run for `prefix` leaves."""
    return [Path(prefix + end) for end in (".bin", ".idx", "_skipped.jsonl")] + [record_path(prefix)]


def require_apart(files: Iterable[Path], outputs: Iterable[Path]) -> None:
    """Check that no output is one of the input's files, by whatever name.

    Raises:
        UserError: one is.
    """
    there = [path for path in outputs if path.exists()]
    for file in files:
        for path in there:
            if os.path.samefile(file, path):
                raise UserError(f"{path} is read as input and would be written over; choose another output, or move that file.")


def _finished(prefix: str, made_from: dict[str, Any], overwrite: bool) -> Counts | None:
    """The counts of a pair that this very input made; None if one is to be made or finished. Removes nothing.

    Raises:
        UserError: there is another pair, and `overwrite` is not given.
    """
    there = [prefix + end for end in (".bin", ".idx") if os.path.exists(prefix + end)]
    record, state = saved_record(record_path(prefix)), saved_record(Path(prefix + ".partial", "state.json"))
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


def _resume(partial: Path, made_from: dict[str, Any], prefix: str) -> Counts:
    """How far an earlier run of this input came; zero if there was none, or it was another input's.

    A state at the input's end is no interrupted run's: that run was refused for its bad records, or killed while it
    named its files.
    """
    state = partial / "state.json"
    if not (saved := saved_record(state)):
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
    """Check that the partial files are as long as the state says. Truncating a shorter one would fill it with zeros.

    Raises:
        UserError: one is shorter.
    """
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
    """Encode everything behind `counts.place` into the partial files. Returns the counts at the input's end."""
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
        # `closing` ends the workers at once, however this block is left.
        closing(encode_chunks(chunks, settings, tokenizer, workers)) as results,
        _open_at(partial / "tokens", counts.tokens * itemsize) as tokens,
        _open_at(partial / "lengths", counts.documents * 4) as lengths,
        _open_at(partial / "skipped", counts.report_bytes) as report,
    ):
        for chunk, result in results:
            lines = b""
            if counts.report_bytes < REPORT_BYTES:
                lines = report_lines(files[chunk.file], chunk.kind, result.skipped)
            with naming(partial):
                tokens.write(result.tokens)
                lengths.write(result.lengths.tobytes())
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
    """The counts behind a chunk."""
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
    """Flush the partial files to the disk, and only then write how much of them counts."""
    for file in files:
        file.flush()
        os.fsync(file.fileno())
    write_record(partial / "state.json", made_from, counts)


def _finish(
    partial: Path,
    prefix: str,
    counts: Counts,
    made_from: dict[str, Any],
    dtype: np.dtype,
    max_bad_fraction: float,
) -> None:
    """Judge the counts, then give the files their names, the `.idx` last. A killed run can do it again from any point.

    When it replaces a pair, there is no `.idx` from the moment that the old one is removed until the new `.bin` has its
    name.

    Raises:
        UserError: too many records are bad, or there is no document.
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
    renamed = not (partial / "tokens").exists()  # by an earlier run that was killed after it
    if not renamed:
        Path(prefix + ".idx").unlink(missing_ok=True)
    write_record(record_path(prefix), made_from, counts)
    if not renamed:
        os.replace(partial / "tokens", prefix + ".bin")
    os.replace(partial / "index", prefix + ".idx")


def check_bad_fraction(bad: int, good: int, allowed: float, report: Path) -> None:
    """Check that `bad` is at most the `allowed` fraction of bad and good records. Empty ones do not count.

    Raises:
        UserError: it is more.
    """
    fraction = bad / max(1, bad + good)
    if fraction > allowed:
        raise UserError(
            f"{bad} of {bad + good} records are bad, more than the allowed fraction {allowed:g}; "
            f"{report} lists them. Mend them, or run again with --max-bad-fraction {fraction * 1.01:.2g}."
        )


@contextmanager
def _open_at(path: Path, size: int) -> Iterator[Any]:
    """A file to be written from byte `size` on; what follows there is cut off."""
    with open(path, "r+b" if path.exists() else "w+b") as file:
        file.truncate(size)
        file.seek(size)
        yield file


@contextmanager
def _only_run(partial: Path) -> Iterator[None]:
    """Hold a lock, so that no second run writes the same prefix at the same time.

    Raises:
        UserError: another run holds it.
    """
    with open(partial / "lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"another run is writing {partial} now; wait for it, or choose another output.") from error
        yield
