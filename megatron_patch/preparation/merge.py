"""Several `.bin`/`.idx` pairs → one, in the order in which they are given. No token is looked at.

The shards of one input give the pair that one run over all of it gives, byte for byte, and its record. A merge that was
killed leaves `PREFIX.partial/` and no pair that anything would take for whole; the same command does it again.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from megatron_patch.errors import UserError
from megatron_patch.formats.progress import Progress
from megatron_patch.preparation.partial_pair import (
    already_made,
    finish,
    only_run,
    open_at,
    output_paths,
    require_apart,
    require_whole,
    save_state,
)
from megatron_patch.preparation.resumable_state import FORMAT, Counts, Record, record_path, saved_record
from megatron_patch.records.chunks import Place
from megatron_patch.records.indexed import IndexedData, read_index
from megatron_patch.records.skipped import REPORT_BYTES

_BLOCK = 8 << 20  # bytes copied, documents read, at a time


def merge(sources: Sequence[str], prefix: str, overwrite: bool = False) -> Counts:
    """Join the pairs at `sources` into one at `prefix`.

    Raises:
        UserError: a source is no whole pair, or of another type or tokenizer than the first; shards do not make up one
            input; a source would be written over; or `prefix` holds another pair.
    """
    records = [saved_record(record_path(source)) for source in sources]
    _require_settled(sources)
    pairs = [_pair(source, record) for source, record in zip(sources, records)]
    there = [pair for pair in pairs if pair is not None]
    if not there:
        raise UserError(f"none of the {len(sources)} parts holds a document; prepare them from an input that holds text.")
    require_apart([Path(pair.prefix + end) for pair in there for end in (".bin", ".idx")], output_paths(prefix))
    _require_one_type(there)
    made_from = _made_from(sources, records)
    counts = _counts(there, records, made_from)
    if finished := already_made(prefix, made_from, overwrite):
        return finished
    partial = Path(prefix + ".partial")
    partial.mkdir(parents=True, exist_ok=True)
    with only_run(partial):
        state = saved_record(partial / "state.json")
        if state is None or state.made_from != made_from or state.counts.place != counts.place:
            counts = _copy(sources, there, partial, counts, made_from)
        else:  # an earlier merge was killed as it named its files
            counts = state.counts
            require_whole(partial, prefix, counts, there[0].dtype.itemsize)
        finish(partial, prefix, counts, made_from, there[0].dtype, max_bad_fraction=1)
    shutil.rmtree(partial)
    return counts


def _require_settled(sources: Sequence[str]) -> None:
    """Check that no source is still being made.

    Raises:
        UserError: one is, or its run was interrupted.
    """
    for source in sources:
        if Path(source + ".partial").is_dir():
            raise UserError(f"{source} is not finished: {source}.partial is there; wait for its run, or run it again.")


def _pair(source: str, record: Record | None) -> IndexedData | None:
    """The pair at `source`; None for a shard in which no record begins.

    Raises:
        UserError: it is no whole pair, or holds documents of several sequences.
    """
    if record is not None and "shard" in record.made_from and not record.counts.documents:
        return None
    pair = read_index(source)
    if pair.boundaries != len(pair.lengths) + 1:
        raise UserError(f"{source}.idx has documents of several sequences; only pairs of one sequence a document are joined.")
    return pair


def _require_one_type(pairs: list[IndexedData]) -> None:
    """Check that all pairs have one type of ids.

    Raises:
        UserError: they have not.
    """
    for pair in pairs:
        if pair.dtype != pairs[0].dtype:
            raise UserError(
                f"{pair.prefix}.idx has ids of type {pair.dtype}, and {pairs[0].prefix}.idx of type {pairs[0].dtype}; "
                "prepare them with one tokenizer."
            )


def _made_from(sources: Sequence[str], records: list[Record | None]) -> dict[str, Any]:
    """What the joined pair is made from: of shards, what one run over their input would say.

    Raises:
        UserError: the pairs were made with different tokenizers or settings, or are not all shards of one input.
    """
    known = [(source, record.made_from) for source, record in zip(sources, records) if record is not None]
    if len(known) < len(sources):  # pairs of other programs say nothing of themselves but their sizes
        sizes = [[Path(source).name, os.path.getsize(f"{source}.bin"), 0] for source in sources]
        return {"format": FORMAT, "files": sizes, "merged": True}
    first_source, first = known[0]
    own = {"files", "shard"}
    for source, made in known:
        different = sorted(key for key in {*first, *made} - own if first.get(key) != made.get(key))
        if different:
            what = " and ".join(different)
            raise UserError(f"{source} was made with another {what} than {first_source}; prepare both alike, then join them.")
    settings = {key: value for key, value in first.items() if key not in own}
    if any("shard" in made for _, made in known):
        _require_all_shards(known)
        return {**settings, "files": first["files"]}
    return {**settings, "files": [file for _, made in known for file in made["files"]]}


def _require_all_shards(known: list[tuple[str, dict[str, Any]]]) -> None:
    """Check that the pairs are all shards of one input, in order.

    Raises:
        UserError: they are not.
    """

    def content(made: dict[str, Any]) -> list[Any]:
        return [file[:2] for file in made["files"]]  # copies of a file on several machines have times of their own

    first_source, first = known[0]
    for source, made in known:
        if content(made) != content(first) or "shard" not in made:
            raise UserError(f"{source} is no part of the input that {first_source} was made from; join the parts of one input.")
    count = first["shard"][1]
    given = [tuple(made["shard"]) for _, made in known]
    if given != [(number, count) for number in range(1, count + 1)]:
        listed = ", ".join(f"{number}/{of}" for number, of in given)
        raise UserError(f"the parts 1/{count} to {count}/{count} are wanted, once and in this order; got {listed}.")


def _counts(pairs: list[IndexedData], records: list[Record | None], made_from: dict[str, Any]) -> Counts:
    """The sums of the parts, at the end of all their files."""
    known = [record.counts for record in records if record is not None]
    return Counts(
        place=Place(len(made_from["files"])),
        documents=sum(len(pair.lengths) for pair in pairs),
        tokens=sum(pair.tokens for pair in pairs),
        bad=sum(counts.bad for counts in known),
        empty=sum(counts.empty for counts in known),
        size=sum(counts.size for counts in known),
    )


def _copy(
    sources: Sequence[str], pairs: list[IndexedData], partial: Path, counts: Counts, made_from: dict[str, Any]
) -> Counts:  # fmt: skip
    """Write the parts end to end into the partial files. Returns the counts with the report's size."""
    (partial / "state.json").unlink(missing_ok=True)
    total = sum(pair.tokens * pair.dtype.itemsize for pair in pairs)
    with (
        Progress("joining", total) as progress,
        open_at(partial / "tokens", 0) as tokens,
        open_at(partial / "lengths", 0) as lengths,
        open_at(partial / "skipped", 0) as report,
    ):
        for pair in pairs:
            _append(Path(pair.prefix + ".bin"), tokens, progress.add)
            for begin in range(0, len(pair.lengths), _BLOCK):
                lengths.write(np.ascontiguousarray(pair.lengths[begin : begin + _BLOCK]).tobytes())
        for source in sources:
            path = Path(source + "_skipped.jsonl")
            if path.is_file() and report.tell() < REPORT_BYTES:
                _append(path, report)
        counts = replace(counts, report_bytes=report.tell())
        save_state(partial, counts, made_from, tokens, lengths, report)
    return counts


def _append(source: Path, target: BinaryIO, copied: Callable[[int], None] = lambda count: None) -> None:
    with open(source, "rb") as file:
        while block := file.read(_BLOCK):
            target.write(block)
            copied(len(block))
