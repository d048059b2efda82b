"""What a user can mend, told apart from a bug. Imports no torch."""

from __future__ import annotations

import errno
import io
import sys

_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)  # writing fails with them, and names no file


class UserError(ValueError):
    """Something that was typed, or that stands in a file, is wrong; the message says what was got, what is allowed, what to do.

    The command-line modules and the launcher catch it, print the message without a traceback, and end with status 2 (preparation
    with 1 where the data is wrong). Nobody else catches it but to add a file's name or to go on without that file or record.

    Every other exception is a bug, a plain ValueError among them: it ends in a traceback and status 1.
    """


def sentence(error: UserError | OSError) -> str:
    """What a user reads of an error: its own words.

    Raises:
        OSError: the given one, where the system names neither a file nor a full or failing disk, so that it is a bug.
    """
    if isinstance(error, UserError):
        return str(error)
    if error.filename is None and error.errno not in _OF_THE_DISK:
        raise error
    return f"{error}."


def print_any_text() -> None:
    """Let standard output write what its encoding lacks as escapes, as standard error does; at first it raises a ValueError.

    A path may hold bytes that are no text, and a JSON file halves of characters.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
