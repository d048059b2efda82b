"""The files of an unfinished pair, and how they get their names.

What is finished so far lies in `PREFIX.partial/`: `tokens`, `lengths` and `skipped`. An old pair stays until the new
one is whole. Its `.idx` goes first and the new one comes last, so at no moment does the `.idx` of one pair stand beside
the `.bin` of another.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from megatron_patch.errors import UserError
from megatron_patch.language.sentences import in_language
from megatron_patch.preparation.resumable_state import Counts, record_path, saved_record, write_record
from megatron_patch.records.indexed import write_index
from megatron_patch.records.shards import Span


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


def already_made(prefix: str, made_from: dict[str, Any], overwrite: bool) -> Counts | None:
    """The counts of a pair that this very input made; None if one is to be made or finished. Removes nothing.

    Raises:
        UserError: there is another pair, and `overwrite` is not given.
    """
    there = [prefix + end for end in (".bin", ".idx") if os.path.exists(prefix + end)]
    record, state = saved_record(record_path(prefix)), saved_record(Path(prefix + ".partial", "state.json"))
    own, begun = (saved is not None and saved.made_from == made_from for saved in (record, state))
    if len(there) == 2 and record is not None and own and not begun:
        print(
            in_language(f"{prefix}.bin and .idx are there already, made from this very input; nothing is done."),
            file=sys.stderr,
        )
        return record.counts
    # A run of this input that was killed as it named its files leaves one of them, or both and its record.
    naming = begun and (len(there) == 1 or own)
    if there and not naming and not overwrite:
        raise UserError(f"{' and '.join(there)} exist, made from other input; remove them, or add --overwrite.")
    return None


def resume(partial: Path, made_from: dict[str, Any], prefix: str, span: Span) -> Counts:
    """How far an earlier run of this input came; the span's begin if there was none, or it was of another input.

    A state at the input's end is no interrupted run's: that run was refused for its bad records, or killed while it
    named its files.
    """
    state = partial / "state.json"
    if not (saved := saved_record(state)):
        return Counts(span.begin)
    counts = saved.counts
    if saved.made_from != made_from:
        state.unlink()
        print(in_language(f"{prefix}: an earlier run had other input or settings; beginning anew."), file=sys.stderr)
        return Counts(span.begin)
    if counts.place.file >= len(made_from["files"]):
        print(in_language(f"{prefix}: the {counts.documents} documents of an earlier run are used."), file=sys.stderr)
    else:
        print(in_language(f"{prefix}: going on after {counts.documents} documents of an interrupted run."), file=sys.stderr)
    return counts


def require_whole(partial: Path, prefix: str, counts: Counts, itemsize: int) -> None:
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


class States(AbstractContextManager["States"]):
    """States that are saved beside the work, which need not wait for the disk. The end waits for what was begun.

    Args:
        files: of the partial pair; what they hold when a state is begun, it counts at most.
    """

    def __init__(self, partial: Path, made_from: dict[str, Any], *files: Any) -> None:
        self._partial, self._made_from, self._files = partial, made_from, files
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="state")
        self._begun: Future[None] | None = None

    @property
    def is_ready(self) -> bool:
        """Whether no state is on its way."""
        return self._begun is None or self._begun.done()

    def begin(self, counts: Counts) -> None:
        """Save these counts as a state, once the one before is done.

        Raises:
            OSError: the one before could not be saved.
        """
        self.wait()
        for file in self._files:
            file.flush()
        self._begun = self._thread.submit(save_state, self._partial, counts, self._made_from, *self._files)

    def wait(self) -> None:
        """Wait until the state that was begun is saved.

        Raises:
            OSError: it could not be.
        """
        begun, self._begun = self._begun, None
        if begun is not None:
            begun.result()

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown()


def save_state(partial: Path, counts: Counts, made_from: dict[str, Any], *files: Any) -> None:
    """Flush the partial files to the disk, and only then write how much of them counts."""
    for file in files:
        file.flush()
        os.fsync(file.fileno())
    write_record(partial / "state.json", made_from, counts)


def finish(
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
        UserError: too many records are bad, or there is no document. A shard may have none, and then gives its record
            alone.
    """
    if (partial / "skipped").exists() and counts.report_bytes:
        shutil.copyfile(partial / "skipped", prefix + "_skipped.jsonl")
    elif os.path.exists(prefix + "_skipped.jsonl"):
        os.remove(prefix + "_skipped.jsonl")
    check_bad_fraction(counts.bad, counts.documents, max_bad_fraction, Path(prefix + "_skipped.jsonl"))
    if not counts.documents and "shard" in made_from:
        write_record(record_path(prefix), made_from, counts)
        return
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
def open_at(path: Path, size: int) -> Iterator[Any]:
    """A file to be written from byte `size` on; what follows there is cut off."""
    with open(path, "r+b" if path.exists() else "w+b") as file:
        file.truncate(size)
        file.seek(size)
        yield file


@contextmanager
def only_run(partial: Path) -> Iterator[None]:
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
