"""Which files hold records: what an input argument names, and whether a file's content is JSON."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from megatron_patch.errors import UserError
from megatron_patch.records.chunks import DAMAGED, PEEK, open_stream

SUFFIXES = (".jsonl", ".json", ".jsonl.zst", ".jsonl.gz", ".parquet", ".json.zst", ".json.gz")
_BEGINS_JSON = re.compile(rb'\s*(\{\s*["}]|\[\s*[{\]])')


def find_files(inputs: Sequence[str | Path]) -> list[Path]:
    """The data files that `inputs` name. A folder stands for its own data files, in the order of their names.

    Raises:
        UserError: a path does not exist, a folder holds no data files, or a file has another suffix and its content is
            no JSON.
    """
    files: list[Path] = []
    for path in map(Path, inputs):
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.name.endswith(SUFFIXES) and p.is_file())
            if not inside:
                raise UserError(f"{path} holds no data files; put {', '.join(SUFFIXES[:5])} files there.")
            files += inside
        elif not path.is_file():
            raise UserError(f"{path} does not exist; give a data file, or a folder of {', '.join(SUFFIXES[:5])} files.")
        elif not is_json(path):
            raise UserError(
                f"{path} has no suffix that is read, and does not begin as JSON does; "
                f"name it {', '.join(SUFFIXES[:5])} after its form."
            )
        else:
            files.append(path)
    return files


def is_json(path: Path) -> bool:
    """Whether a file is read as records: its ending decides; without a known one, its content."""
    return path.name.endswith(SUFFIXES) or holds_json(path)


def holds_json(path: Path) -> bool:
    """Whether a file begins like a JSON object or a list of objects, whatever its name. False for a damaged archive."""
    try:
        with open_stream(path) as stream:
            return _BEGINS_JSON.match(stream.peek(PEEK)) is not None
    except DAMAGED:
        return False
