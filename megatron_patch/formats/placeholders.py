"""Files that are not what their name says: Git LFS pointers, and empty ones that a broken download leaves. No torch."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from megatron_patch.errors import UserError

_POINTER = b"version https://git-lfs.github.com/spec/v"  # git-lfs/docs/spec.md: always the first line
_MAY_BE_EMPTY = (".jinja",)  # an empty chat template is one


def placeholder_finding(path: Path) -> str | None:
    """A sentence that says what to do if `path` is a Git LFS pointer, is empty or cannot be read; else None."""
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
    """Stop at a file that is not what its name says.

    Raises:
        UserError: the sentence of `placeholder_finding`, if there is one.
    """
    finding = placeholder_finding(path)
    if finding:
        raise UserError(finding)


def refuse_placeholders(paths: Iterable[Path]) -> None:
    """`refuse_placeholder` for each of `paths` that exists.

    Raises:
        UserError: for the first that is not what its name says.
    """
    for path in paths:
        if path.is_file():
            refuse_placeholder(path)
