"""Which files hold records: what an input argument names, and whether a file's content is JSON.

A folder stands for its own data files. Names that begin with a dot are not read: macOS writes `._name` beside files on
other systems' disks, and other programs write what is not finished under such names.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from megatron_patch.errors import UserError
from megatron_patch.language.sentences import counted, fill
from megatron_patch.records.chunks import DAMAGED, PEEK, open_stream

SUFFIXES = (".jsonl", ".json", ".jsonl.zst", ".jsonl.gz", ".parquet", ".json.zst", ".json.gz")
_ARCHIVES = (".zst", ".gz")
_MOST_NAMED = 8  # files that are not read and are named in a line
_BEGINS_JSON = re.compile(rb'\s*(\{\s*["}]|\[\s*[{\]])')


def find_files(inputs: Sequence[str | Path]) -> list[Path]:
    """The data files that `inputs` name. A folder stands for its own data files, in the order of their names.

    Raises:
        UserError: a path does not exist, a folder holds no data files or one of them twice, or a file has another
            suffix and its content is no JSON.
    """
    files: list[Path] = []
    for path in map(Path, inputs):
        if path.is_dir():
            inside = sorted(filter(_is_data, path.iterdir()))
            if not inside:
                raise UserError(f"{path} holds no data files; put {', '.join(SUFFIXES[:5])} files there.")
            _require_single(path, inside)
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


def not_read(inputs: Sequence[str | Path]) -> list[str]:
    """A line for each folder of `inputs` in which something is not read."""
    lines = []
    for folder in filter(Path.is_dir, map(Path, inputs)):
        there = sorted(folder.iterdir())
        # Hidden files are not named, but for those that would be data under another name.
        rest = [p for p in there if not _is_data(p) and (p.name.endswith(SUFFIXES) or not p.name.startswith("."))]
        names = [f"{p.name}/" if p.is_dir() else p.name for p in rest[:_MOST_NAMED]]
        if names:
            more = fill(" and {} more", len(rest) - len(names)) if len(rest) > len(names) else ""
            read = counted(sum(map(_is_data, there)), "file")
            lines.append(fill("{}: {} read; not read: {}{}.", folder, read, ", ".join(names), more))
    return lines


def _is_data(path: Path) -> bool:
    """Whether a folder's entry is one of its data files."""
    return path.name.endswith(SUFFIXES) and not path.name.startswith(".") and path.is_file()


def _require_single(folder: Path, files: Sequence[Path]) -> None:
    """Check that no file lies beside itself, packed in another way.

    Raises:
        UserError: one does. Its documents would be read twice.
    """
    seen: dict[str, str] = {}
    for name in (file.name for file in files):
        bare = next((name.removesuffix(end) for end in _ARCHIVES if name.endswith(end)), name)
        other = seen.setdefault(bare, name)
        if other != name:
            raise UserError(
                f"{folder} holds {other} and {name}, which look like one file twice, so that each of its documents would be "
                "read twice: move one of them to another folder, or name the files that are to be read one by one."
            )


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
