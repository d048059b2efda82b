"""What the operating system refuses while a checkpoint is written: every rank gets to know."""

from __future__ import annotations

import megatron_patch.core.device  # noqa: F401  prepares megatron-core for this machine

from collections.abc import Callable
from typing import TypeVar

from megatron_patch.core import parallel
from megatron_patch.errors import UserError

_T = TypeVar("_T")


class SaveFailed(Exception):  # noqa: N818  an outcome of saving, not an error of this program
    """A checkpoint could not be written; those before it are as they were. Every rank raises it, with one sentence."""


def together(work: Callable[[], _T]) -> _T:
    """Do this rank's part of a save; every rank calls it, with a part of its own or with one that does nothing.

    Raises:
        SaveFailed: the operating system refused something on any rank, or a file is not as it was written.
    """
    try:
        return parallel.all_or_none(work)
    except UserError as error:
        raise SaveFailed(str(error)) from None
