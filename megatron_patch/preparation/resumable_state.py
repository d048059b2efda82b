"""How far a run of preparation is and what it was made from.

One form serves the state of a run that may be killed and the record `PREFIX.made` beside a finished pair.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from megatron_patch.data.tokenizer import Tokenizer
from megatron_patch.errors import UserError
from megatron_patch.formats.json_files import json_object, one_line, whole_in
from megatron_patch.preparation.encoding import Settings
from megatron_patch.records.chunks import START, Place
from megatron_patch.records.shards import Shard
from megatron_patch.records.skipped import MAX_DOCUMENT_MB, REPORT_BYTES

FORMAT = "megatron_patch preprocess 1"


@dataclass(frozen=True)
class Counts:
    """How far a run is.

    Attributes:
        place: where to go on reading.
        documents, tokens: what the pair holds so far.
        bad: records that were lost; an estimate if a JSON list breaks off.
        empty: empty records, which lose nothing.
        size: bytes of input that were read.
        report_bytes: bytes of the report on skipped records.
    """

    place: Place = START
    documents: int = 0
    tokens: int = 0
    bad: int = 0
    empty: int = 0
    size: int = 0
    report_bytes: int = 0

    def lines(self, prefix: str) -> list[str]:
        """Sentences for the console."""
        out = [f"{prefix}: {self.documents} documents, {self.tokens} tokens from {self.size / 1e6:.1f} MB."]
        if self.bad or self.empty:
            out.append(
                f"{self.bad} bad and {self.empty} empty records gave no document; "
                f"{prefix}_skipped.jsonl lists {'the first of ' if self.report_bytes >= REPORT_BYTES else ''}them."
            )
        return out


@dataclass(frozen=True)
class Record:
    """A state or PREFIX.made: what a pair is made from, as JSON values, and how far it is."""

    made_from: dict[str, Any]
    counts: Counts


def read_record(path: Path) -> Record:
    """Read a record or a state that a run of preparation wrote.

    Raises:
        UserError: the file is no JSON object, or holds other things than such a run writes.
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


def saved_record(path: Path) -> Record | None:
    """The record at `path`; None if there is no such file.

    Raises:
        UserError: as `read_record`.
    """
    return read_record(path) if path.is_file() else None


def record_path(prefix: str) -> Path:
    """Where the record of the pair at `prefix` lies."""
    return Path(prefix + ".made")


def made_from_of(files: list[Path], settings: Settings, tokenizer: Tokenizer, shard: Shard | None) -> dict[str, Any]:
    """What decides a pair's content, as JSON values.

    These are the files' names, sizes and times, the settings, the fingerprint of the tokenizer's files, and the shard.
    """
    stats = [[f.name, f.stat().st_size, f.stat().st_mtime_ns] for f in files]
    chosen = {k: v for k, v in asdict(settings).items() if k != "tokenizer_folder"} | {"tokenizer": tokenizer.fingerprint}
    # Pairs that were made before these settings existed do not record them.
    for name, default in (("max_document_mb", MAX_DOCUMENT_MB), ("joined", False)):
        if chosen[name] == default:
            del chosen[name]
    part = {"shard": [shard.number, shard.count]} if shard else {}
    return json.loads(json.dumps({"format": FORMAT, "files": stats} | chosen | part))


def write_record(path: Path, made_from: dict[str, Any], counts: Counts) -> None:
    """Write a record or a state, flush it, and rename it to its name: what lies at `path` is always whole."""
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump({"made_from": made_from, "counts": asdict(counts)}, file, ensure_ascii=False, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
