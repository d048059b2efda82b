"""The one class for what a user can mend."""

from __future__ import annotations


class UserError(ValueError):
    """Something that was typed, or that stands in a file, is wrong; the message says what was got, what is allowed, what to do.

    The command-line modules catch it, print the message without a traceback, and end with status 2. Any other error is a bug.
    """
