"""Files that stand for others: Git LFS pointers, and empty ones that an interrupted download leaves. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from megatron_patch.errors import UserError

_POINTER = b"version https://git-lfs.github.com/spec/v"  # git-lfs/docs/spec.md: always the first line
_MAY_BE_EMPTY = (".jinja",)


def placeholder_finding(path: Path) -> str | None:
    """What `path` is, if it is a Git LFS pointer, holds nothing or cannot be read, and how to get the file itself; else None."""
    try:
        with open(path, "rb") as stream:
            head = stream.read(len(_POINTER))
    except OSError as error:
        return f"{path} cannot be read ({error.strerror}); check its permissions, or copy it again."
    if head == _POINTER:
        return (
            f"{path} is a Git LFS pointer, some 130 bytes that stand for the file itself: run `git lfs pull` in {path.parent} "
            "(after `git lfs install`), or download the file."
        )
    if not head and path.suffix not in _MAY_BE_EMPTY:
        return f"{path} is empty; copy or download it again."
    return None


def refuse_placeholder(path: Path) -> None:
    """Raise where `placeholder_finding` finds something.

    Raises:
        UserError: its sentence.
    """
    finding = placeholder_finding(path)
    if finding:
        raise UserError(finding)


def refuse_placeholders(paths: Iterable[Path]) -> None:
    """`refuse_placeholder` for those of `paths` that exist."""
    for path in paths:
        if path.is_file():
            refuse_placeholder(path)
