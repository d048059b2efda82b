"""A folder that exists whole or not at all: made beside its final name, flushed, renamed."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

from megatron_patch.checkpoint.layout import TRACKER, flush

_MARK = ".partial-"


def target_finding(target: Path, overwrite: bool) -> str | None:
    """Why `target` cannot be written, as what to do about it; None where it can."""
    if not target.exists():
        return None
    if not target.is_dir():
        return "a file of that name exists: write a folder that does not exist yet."
    if not any(target.iterdir()):
        return None
    if not overwrite:
        return "it exists and is not empty: write a folder that does not exist yet, or add --overwrite to replace it."
    if not any((target / name).is_file() for name in (TRACKER, "config.json")):
        return "--overwrite replaces a model, and there is none in it: remove it yourself, or write another folder."
    return None


@contextlib.contextmanager
def new_folder(target: Path, overwrite: bool = False) -> Iterator[Path]:
    """An empty folder beside `target`; it becomes `target` when the body ends well, and is removed when it does not.

    A process that is killed leaves a folder whose name ends in .partial-HOST-PID; the next one on that host removes it.

    Raises:
        ValueError: `target` is there already, now or at the end.
    """
    target = Path(os.path.abspath(target))
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_left_over(target)
    partial = target.with_name(f"{target.name}{_MARK}{socket.gethostname()}-{os.getpid()}")
    partial.mkdir()
    try:
        yield partial
        _flush_tree(partial)
        _put_in_place(partial, target, overwrite)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _remove_left_over(target: Path) -> None:
    """Folders that a killed process of this host left beside `target`."""
    prefix = f"{target.name}{_MARK}{socket.gethostname()}-"
    for folder in target.parent.iterdir():
        process = folder.name.removeprefix(prefix)
        if folder.name.startswith(prefix) and process.isdecimal() and not Path("/proc", process).exists():
            shutil.rmtree(folder)


def _flush_tree(folder: Path) -> None:
    for path, folders, files in os.walk(folder, topdown=False):
        for name in (*files, *folders):
            flush(os.path.join(path, name))
    flush(folder)


def _put_in_place(partial: Path, target: Path, overwrite: bool) -> None:
    finding = target_finding(target, overwrite)
    if finding:
        raise ValueError(f"{target} came to be while this ran; {finding}")
    old = None
    if target.exists():
        old = target.with_name(f"{target.name}.old-{os.getpid()}")
        os.replace(target, old)
    os.replace(partial, target)
    flush(target.parent)
    if old is not None:
        shutil.rmtree(old)
