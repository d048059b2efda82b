"""`UserError`, for what a user can mend; every other exception is a bug. Imports no torch."""

from __future__ import annotations

import errno
import io
import sys

_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)  # full or failing; such an error names no file


class UserError(ValueError):
    """Something that was typed, or that a file holds, is wrong. The message says what was got, what is allowed, what to
    do.

    The command-line modules and the launcher catch it, print the message without a traceback, and end with status 2
    (preparation with 1 if the data is wrong). Other code catches it only to add a file's name, or to continue without
    that file or record.

    Every other exception is a bug, a plain ValueError too: it ends in a traceback and status 1.
    """


def sentence(error: UserError | OSError) -> str:
    """The text of an error that a user reads.

    Raises:
        OSError: `error` itself, if it names no file and is not about a full or failing disk. Then it is a bug.
    """
    if isinstance(error, UserError):
        return str(error)
    if error.filename is None and error.errno not in _OF_THE_DISK:
        raise error
    return f"{error}."


def print_any_text() -> None:
    """Let standard output write characters that its encoding lacks as escapes, as standard error does.

    Without this call printing them raises a ValueError. A path may hold bytes that are not text, and a JSON file half
    of a surrogate pair.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
