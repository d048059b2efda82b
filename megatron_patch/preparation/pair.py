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

import os
import shutil
import sys
from collections.abc import Iterable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from megatron_patch.data.compared_engine import FIRST_TEXTS, PAYS_FROM, Engine, choose_engine, differs
from megatron_patch.data.tokenizer import Tokenizer, load_tokenizer
from megatron_patch.errors import UserError
from megatron_patch.preparation.encoding import ChunkResult, Settings, encode_chunks
from megatron_patch.preparation.partial_pair import finish, only_run, open_at, output_paths, require_apart
from megatron_patch.preparation.resumable_state import Counts, made_from_of, record_path, saved_record, write_record
from megatron_patch.preparation.wudao import CLEANERS
from megatron_patch.records.chunks import Chunk, Place, read_chunks
from megatron_patch.records.files import find_files
from megatron_patch.records.indexed import token_dtype
from megatron_patch.records.skipped import MEGABYTE, REPORT_BYTES, report_lines
from megatron_patch.records.texts import texts_of

_STATE_BYTES = 64 << 20  # bytes of input between two states; a killed run loses at most these


def preprocess(
    inputs: Iterable[str | Path],
    prefix: str | Path,
    settings: Settings,
    *,
    workers: int = 1,
    max_bad_fraction: float = 0.001,
    overwrite: bool = False,
    tokenizer_engine: str = "auto",
) -> Counts:
    """Make the pair at `prefix`, or finish one that was begun, or find that it is there already.

    Args:
        workers: processes that tokenize; 1 tokenizes in this one.
        max_bad_fraction: share of the records that may be bad. Beyond it the report is written and no pair, and an old
            pair stays.
        overwrite: replace a pair that was made from other input.
        tokenizer_engine: `auto` takes the fast engine where it pays and is right; `reference` never does.

    Raises:
        UserError: input, tokenizer or folder cannot be used; an output is an input; `prefix` holds another pair; too
            many records are bad; or the fast engine turns out to be wrong while it reads.
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
    with only_run(partial):
        counts = _resume(partial, made_from, prefix)
        _require_whole(partial, prefix, counts, token_dtype(tokenizer.vocab_size).itemsize)
        engine = _engine(files, settings, tokenizer, tokenizer_engine)
        if engine.note:
            print(f"{prefix}: {engine.note}", file=sys.stderr)
        counts = _encode_all(files, partial, counts, made_from, settings, engine, workers)
        finish(partial, prefix, counts, made_from, token_dtype(tokenizer.vocab_size), max_bad_fraction)
    shutil.rmtree(partial)
    return counts


def _engine(files: list[Path], settings: Settings, tokenizer: Tokenizer, asked: str) -> Engine:
    """What reads the texts."""
    if asked == "reference" or sum(file.stat().st_size for file in files) < PAYS_FROM:
        return Engine(tokenizer, None, "")
    texts: list[str] = []
    for chunk in read_chunks(files, longest=settings.max_document_mb * MEGABYTE):
        texts += [text for _, text in texts_of(chunk, settings.keys, CLEANERS[settings.clean], settings.joined)[0]]
        if len(texts) >= FIRST_TEXTS:
            break
    return choose_engine(tokenizer, texts)


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
    settings: Settings, engine: Engine, workers: int,
) -> Counts:  # fmt: skip
    """Encode everything behind `counts.place` into the partial files. Returns the counts at the input's end.

    Raises:
        UserError: the fast engine gave other ids than the reference for a record. What was written is removed, since
            records before it may be wrong too.
    """
    from tqdm import tqdm

    if counts.place.file >= len(files):
        return counts
    itemsize = token_dtype(engine.tokenizer.vocab_size).itemsize
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
        closing(encode_chunks(chunks, settings, engine, workers)) as results,
        open_at(partial / "tokens", counts.tokens * itemsize) as tokens,
        open_at(partial / "lengths", counts.documents * 4) as lengths,
        open_at(partial / "skipped", counts.report_bytes) as report,
    ):
        for chunk, result in results:
            if result.differs is not None:
                shutil.rmtree(partial)
                raise differs(f"{files[chunk.file]}, {chunk.kind} {result.differs}", engine)
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
