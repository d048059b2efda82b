"""Text files that exist whole or not at all, also after a power cut. Imports no torch."""

from __future__ import annotations

import os
from pathlib import Path

from megatron_patch.errors import named


def write_text(path: Path, text: str) -> None:
    """Write `path` beside, flush, rename; then flush the folder's entry."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        named(error, partial)
        raise
    os.replace(partial, path)
    flush(path.parent)


def flush(path: str | Path) -> None:
    """Wait until a file's bytes, or a folder's entries, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        named(error, path)
        raise
    finally:
        os.close(descriptor)
