"""A folder that exists whole or not at all: made beside its final name, flushed, renamed. Imports no torch."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import psutil

from megatron_patch.errors import UserError
from megatron_patch.folders.durable_files import flush
from megatron_patch.folders.tracker import TRACKER
from megatron_patch.formats.peft_adapter import CONFIG
from megatron_patch.formats.progress import Waiting

_PARTIAL, _OLD = ".partial-", ".old-"


def target_finding(target: Path, overwrite: bool) -> str | None:
    """Why `target` cannot be written, as what to do about it; None where it can."""
    if not target.exists():
        return None
    if not target.is_dir():
        return "a file of that name exists: write a folder that does not exist yet."
    if os.path.ismount(os.path.realpath(target)):
        return "it is a mount point, which nothing can take the place of: write a folder inside it."
    if not any(target.iterdir()):
        return None
    if not overwrite:
        return "it exists and is not empty: write a folder that does not exist yet, or add --overwrite to replace it."
    if not any((target / name).is_file() for name in (TRACKER, "config.json", CONFIG)):
        return "--overwrite replaces a model, and there is none in it: remove it yourself, or write another folder."
    return None


@contextlib.contextmanager
def new_folder(target: Path, overwrite: bool = False) -> Iterator[Path]:
    """An empty folder beside `target`; it becomes `target` when the body ends well, and is removed when it does not.

    A process that is killed leaves a folder whose name ends in .partial-HOST-PID; the next one on that host removes it.
    Two containers of one host name must therefore not write one target at the same time.

    Raises:
        UserError: `target` is there already, now or at the end, or is a mount point.
    """
    # Links are resolved first. What a link names may be on another disk than the link, and a folder can be renamed only
    # on its own disk. Nor can it take a link's place.
    target = Path(os.path.realpath(target))
    finding = target_finding(target, overwrite)
    if finding:
        raise UserError(f"{target} cannot be written; {finding}")
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_left_over(target)
    partial = _beside(target, _PARTIAL)
    partial.mkdir()
    try:
        yield partial
        with Waiting("flushing"):
            _flush_tree(partial)
        _put_in_place(partial, target, overwrite)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _beside(target: Path, mark: str) -> Path:
    """A name beside `target` that says whose it is, so that two hosts or processes do not take each other's."""
    return target.with_name(f"{target.name}{mark}{socket.gethostname()}-{os.getpid()}")


def _remove_left_over(target: Path) -> None:
    """Remove what a killed process of this host left beside `target`: a folder in the making, or a replaced one."""
    # If there is no target, the process was killed between the two renames of `_put_in_place`: the old folder is all
    # there is, and stays.
    for mark in (_PARTIAL, _OLD) if target.exists() else (_PARTIAL,):
        prefix = f"{target.name}{mark}{socket.gethostname()}-"
        for folder in target.parent.iterdir():
            process = folder.name.removeprefix(prefix)
            if folder.name.startswith(prefix) and process.isdecimal() and _has_ended(int(process)):
                shutil.rmtree(folder)


def _has_ended(process: int) -> bool:
    """Whether the process of this number that made a folder on this host is no more."""
    # A number is given again once its process has ended. In a container every run may be process 1, so what is called
    # by our own number is another's.
    return process == os.getpid() or not psutil.pid_exists(process)


def _flush_tree(folder: Path) -> None:
    """Wait until all files and entries below `folder` are on the disk."""
    for path, folders, files in os.walk(folder, topdown=False):
        for name in (*files, *folders):
            flush(os.path.join(path, name))
    flush(folder)


def _put_in_place(partial: Path, target: Path, overwrite: bool) -> None:
    """Give `partial` the name `target`. With `overwrite`, what was there is put back if that fails."""
    finding = target_finding(target, overwrite)
    if finding:
        raise UserError(f"{target} came to be while this ran; {finding}")
    old = _beside(target, _OLD) if target.exists() else None
    try:
        if old is not None:
            os.replace(target, old)
        os.replace(partial, target)
        flush(target.parent)
    except BaseException:
        if old is not None and old.exists() and not target.exists():
            os.replace(old, target)
        raise
    if old is not None:
        shutil.rmtree(old)
