"""`UserError`, for what a user can mend; every other exception is a bug. Imports no torch."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar, cast

_T = TypeVar("_T")
_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)  # full or failing; such an error names no file
# What says something of the file itself: it is not there, or its bytes cannot be had from the disk. Everything else has
# a reason outside of it: rights, a file server that does not answer, too many open files.
_OF_THE_FILE = (
    errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG,
    errno.EIO, errno.ENODATA, errno.EREMOTEIO, errno.EILSEQ, errno.EBADMSG, errno.EUCLEAN,
)  # fmt: skip
_SILENT = (errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENOTCONN)


class UserError(ValueError):
    """Something that was typed, or that a file holds, is wrong. The message says what was got, what is allowed, what to
    do.

    The command-line modules and the launcher catch it, print the message without a traceback, and end with status 2
    (preparation with 1 if the data is wrong). Other code catches it only to add a file's name, or to continue without
    that file or record.

    Every other exception is a bug, a plain ValueError too: it ends in a traceback and status 1.

    Attributes:
        may_pass: whether the same may go well later, as where a disk fails for a while. Then a run is started again.
    """

    may_pass = False


class Refused(UserError):
    """What the operating system refused, as a sentence."""

    may_pass = True


class OnEveryRank(UserError):
    """A UserError that every rank of a run raises at one place, with one sentence. One of them says it."""

    def __init__(self, said: str, *, may_pass: bool = False) -> None:
        super().__init__(said)
        self.may_pass = may_pass


class RefusedOnEveryRank(OnEveryRank):
    """What the operating system refused on a rank, for a reason that says nothing against the file."""


class RunStopped(OnEveryRank):
    """A run that was under way cannot go on. It ends with status 1, because nothing that was typed is wrong."""


def sentence(error: UserError | OSError) -> str:
    """The text of an error that a user reads.

    Raises:
        OSError: `error` itself, if it names no file and is not about a full or failing disk. Then it is a bug.
    """
    if isinstance(error, UserError):
        return str(error)
    if error.filename is None and error.errno not in _OF_THE_DISK:
        raise error
    return refusal(error)


def refusal(error: OSError) -> str:
    """A sentence about what the operating system refused: its own words, the file, and what to do."""
    words = f"{error.strerror or error}".rstrip(".")
    where = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{where}{words}; make room there, in bytes and in inodes (df -h, df -i, quota)."
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"{where}{words}; change its owner or its permissions, or name another place."
    if error.errno == errno.EROFS:
        return f"{where}{words}; mount it writable, or name another place."
    if error.errno in (errno.ENOENT, errno.ESTALE, errno.ENOTDIR):
        return f"{where}{words}; it is not there, or was removed or renamed while this ran."
    if error.errno == errno.EIO:
        return f"{where}{words}; the disk, or the network to it, fails."
    if error.errno in _SILENT:
        return f"{where}{words}; the file server, or the network to it, does not answer."
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return f"{where}{words}; raise the limit of open files (ulimit -n)."
    return f"{where}{words}."


def lies_outside(error: BaseException) -> bool:
    """Whether an error is a refusal of the operating system that says nothing against the file it names."""
    if isinstance(error, OSError):
        return error.errno not in _OF_THE_FILE
    return isinstance(error, RefusedOnEveryRank)


def once_more(work: Callable[[], _T]) -> _T:
    """What `work` returns, which reads files. After an EIO it is done once more: the disk may have failed for a moment.

    Raises:
        OSError: the operating system refuses something; EIO twice.
    """
    try:
        return work()
    except OSError as error:
        if error.errno != errno.EIO:
            raise
    return work()


def all_or_none(work: Callable[[], _T], exchange: Callable[[Any], list[Any]]) -> _T:
    """What `work` returns; all ranks of a run call it.

    Args:
        exchange: gives the objects of all ranks, in their order, for this one's.

    Raises:
        OnEveryRank: it raised a UserError on any rank, or the operating system refused something. The sentence is that
            of the first. So no rank waits for another that has ended.
        RefusedOnEveryRank: that, with the sentence of the first rank on which the reason lies outside of the file.
    """
    problem, result = None, None
    try:
        result = work()
    except (UserError, OSError) as error:
        problem = problem_of(error)
    raise_on_every_rank([one for one in exchange(problem) if one is not None])
    return cast(_T, result)


def problem_of(error: UserError | OSError) -> tuple[str, bool, bool]:
    """What ranks tell each other of an error: its sentence, whether it lies outside of the file, and may pass."""
    if isinstance(error, OSError):
        return refusal(error), lies_outside(error), True
    return str(error), lies_outside(error), error.may_pass


def raise_on_every_rank(problems: Sequence[tuple[str, bool, bool]]) -> None:
    """Raise one error for what any rank has met, if there is anything; every rank calls it with the same `problems`.

    Raises:
        OnEveryRank, RefusedOnEveryRank: as in `all_or_none`.
    """
    for said, is_outside, may_pass in sorted(problems, key=lambda problem: not problem[1]):
        raise (RefusedOnEveryRank if is_outside else OnEveryRank)(said, may_pass=may_pass)


def named(error: OSError, path: object) -> OSError:
    """`error` itself, now with `path` as its file if it named none, as those of an open file's descriptor do."""
    if error.filename is None:
        error.filename = str(path)
    return error


@contextlib.contextmanager
def naming(path: object) -> Iterator[None]:
    """Name `path` in an OSError that is raised inside and names no file.

    Raises:
        OSError: that one.
    """
    try:
        yield
    except OSError as error:
        named(error, path)
        raise


def print_any_text() -> None:
    """Let standard output write characters that its encoding lacks as escapes, as standard error does.

    Without this call printing them raises a ValueError. A path may hold bytes that are not text, and a JSON file half
    of a surrogate pair.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
