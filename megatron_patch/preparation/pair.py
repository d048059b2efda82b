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

import shutil
import sys
from collections.abc import Iterable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from megatron_patch.data.compared_engine import FIRST_TEXTS, PAYS_FROM, Engine, choose_engine, differs
from megatron_patch.data.tokenizer import Tokenizer, load_tokenizer
from megatron_patch.errors import naming
from megatron_patch.formats.progress import Progress
from megatron_patch.language.sentences import in_language
from megatron_patch.preparation.encoding import ChunkResult, Settings, encode_chunks
from megatron_patch.preparation.partial_pair import (
    States,
    already_made,
    finish,
    only_run,
    open_at,
    output_paths,
    require_apart,
    require_whole,
    resume,
)
from megatron_patch.preparation.resumable_state import Counts, made_from_of
from megatron_patch.preparation.wudao import CLEANERS
from megatron_patch.records.chunks import Chunk, Place, can_be_cut
from megatron_patch.records.files import find_files
from megatron_patch.records.indexed import token_dtype
from megatron_patch.records.shards import Shard, Span, span_of
from megatron_patch.records.skipped import MEGABYTE, REPORT_BYTES, report_lines
from megatron_patch.records.texts import texts_of

_STATE_BYTES = 64 << 20  # bytes of input between two states
_MOST_STATES_LATE = 4  # where the disk is slower than the work; a killed run loses at most so many states and one


def preprocess(
    inputs: Iterable[str | Path],
    prefix: str | Path,
    settings: Settings,
    *,
    workers: int = 1,
    max_bad_fraction: float = 0.001,
    overwrite: bool = False,
    tokenizer_engine: str = "auto",
    shard: Shard | None = None,
) -> Counts:
    """Make the pair at `prefix`, or finish one that was begun, or find that it is there already.

    A shard in which no record begins gives no pair, only its record, which `merge` reads.

    Args:
        workers: processes that tokenize; 1 tokenizes in this one.
        max_bad_fraction: share of the records that may be bad. Beyond it the report is written and no pair, and an old
            pair stays.
        overwrite: replace a pair that was made from other input.
        tokenizer_engine: `auto` takes the fast engine where it pays and is right; `reference` never does.
        shard: the part of the input that is prepared; None prepares all of it.

    Raises:
        UserError: input, tokenizer or folder cannot be used; an output is an input; `prefix` holds another pair; too
            many records are bad; or the fast engine turns out to be wrong while it reads.
    """
    files, prefix = find_files(list(inputs)), str(prefix)
    require_apart(files, output_paths(prefix))
    tokenizer = load_tokenizer(settings.tokenizer_folder)
    if tokenizer.separator_note:
        print(in_language(f"{prefix}: {tokenizer.separator_note}"), file=sys.stderr)
    made_from = made_from_of(files, settings, tokenizer, shard)
    span = span_of(files, shard)
    finished = already_made(prefix, made_from, overwrite)
    if finished:
        return finished
    partial = Path(prefix + ".partial")
    partial.mkdir(parents=True, exist_ok=True)
    with only_run(partial):
        counts = resume(partial, made_from, prefix, span)
        require_whole(partial, prefix, counts, token_dtype(tokenizer.vocab_size).itemsize)
        engine = _engine(span, settings, tokenizer, tokenizer_engine)
        if engine.note:
            print(in_language(f"{prefix}: {engine.note}"), file=sys.stderr)
        counts = _encode_all(span, partial, counts, made_from, settings, engine, workers)
        finish(partial, prefix, counts, made_from, token_dtype(tokenizer.vocab_size), max_bad_fraction)
    shutil.rmtree(partial)
    return counts


def _engine(span: Span, settings: Settings, tokenizer: Tokenizer, asked: str) -> Engine:
    """What reads the texts."""
    if asked == "reference" or span.size(span.begin) < PAYS_FROM:
        return Engine(tokenizer, None, "")
    texts: list[str] = []
    for chunk in span.chunks(span.begin, settings.max_document_mb * MEGABYTE, settings.keys):
        texts += [text for _, text in texts_of(chunk, settings.keys, CLEANERS[settings.clean], settings.joined)[0]]
        if len(texts) >= FIRST_TEXTS:
            break
    return choose_engine(tokenizer, texts)


def _encode_all(
    span: Span, partial: Path, counts: Counts, made_from: dict[str, Any],
    settings: Settings, engine: Engine, workers: int,
) -> Counts:  # fmt: skip
    """Encode everything from `counts.place` to the span's end into the partial files. Returns the counts at the end.

    Raises:
        UserError: the fast engine gave other ids than the reference for a record. What was written is removed, since
            records before it may be wrong too.
    """
    files = span.files
    if counts.place.file >= len(files):
        return counts
    itemsize = token_dtype(engine.tokenizer.vocab_size).itemsize
    plain = all(map(can_be_cut, files))
    total = counts.size + span.size(counts.place) if plain else None
    stated = counts.size
    chunks = span.chunks(counts.place, settings.max_document_mb * MEGABYTE, settings.keys)
    with (
        Progress("tokenizing", total, done=counts.size) as progress,
        # `closing` ends the workers at once, however this block is left.
        closing(encode_chunks(chunks, settings, engine, workers)) as results,
        open_at(partial / "tokens", counts.tokens * itemsize) as tokens,
        open_at(partial / "lengths", counts.documents * 4) as lengths,
        open_at(partial / "skipped", counts.report_bytes) as report,
        States(partial, made_from, tokens, lengths, report) as states,
    ):
        for chunk, result in results:
            if result.differs is not None:
                states.wait()
                shutil.rmtree(partial)
                raise differs(f"{files[chunk.file]}, {chunk.kind} {result.differs}{span.whence(chunk.file)}", engine)
            lines = b""
            if counts.report_bytes < REPORT_BYTES:
                lines = report_lines(files[chunk.file], chunk.kind, result.skipped, span.behind(chunk.file))
            with naming(partial):
                tokens.write(result.tokens)
                lengths.write(result.lengths.tobytes())
                report.write(lines)
            counts = _advance(counts, chunk, result, itemsize, len(lines))
            progress.add(chunk.size)
            due = (counts.size - stated) // _STATE_BYTES
            if due >= _MOST_STATES_LATE or (due and states.is_ready):
                states.begin(counts)
                stated = counts.size
        counts = replace(counts, place=Place(len(files)))
        states.begin(counts)
        states.wait()
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
