"""One input and what becomes of it. A result is right, and so is a sentence. Everything else is a failure, with its
place.

A sentence is a UserError, or exit status 2 with something on standard error. Any other ValueError is a failure: it
comes from a bug, or from int(), numpy or json, and names no file and no remedy. `limits` allows an input 5 s and 500
MB.
"""

from __future__ import annotations

import contextlib
import gc
import io
import linecache
import resource
import signal
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from megatron_patch.errors import UserError

SECONDS = 5.0
MEGABYTES = 500
_MOST_CHARACTERS = 20000  # of a sentence
_PACKAGE = str(Path(__file__).resolve().parents[2] / "megatron_patch")


class TooSlow(BaseException):
    """An input took too long. It is not an Exception, so that no reader catches it as one of its own errors."""


@dataclass(frozen=True)
class Failure:
    """What went wrong. `place` is the line of this project and the error; two inputs with one place are one defect."""

    place: str
    detail: str


def outcome(read: Callable[[], object]) -> Failure | None:
    """Run one reader on the input that was made for it."""
    began, out, err = time.monotonic(), io.TextIOWrapper(io.BytesIO(), encoding="utf-8"), io.StringIO()
    failure = None
    with warnings.catch_warnings(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        warnings.simplefilter("ignore")
        try:
            status = read()
        except SystemExit as end:
            status = end.code
            if status not in (0, None) and not (status == 2 and err.getvalue().strip()):
                failure = Failure(f"SystemExit {status} without a sentence: {_place(end.__traceback__)}", err.getvalue()[-500:])
        except UserError as error:
            if len(str(error)) >= _MOST_CHARACTERS:
                failure = _of(error)
        except BaseException as error:  # noqa: B036  whatever it is, it is what this looks for
            if isinstance(error, KeyboardInterrupt):
                raise
            failure = _of(error)
        else:
            if isinstance(status, int) and status == 2 and not err.getvalue().strip():
                failure = Failure("status 2 without a sentence", "")
    if failure is None and time.monotonic() - began > SECONDS:
        failure = Failure(f"more than {SECONDS:g} s", f"{time.monotonic() - began:.1f} s")
    return failure


def _of(error: BaseException) -> Failure:
    text = "".join(traceback.format_exception(error))
    return Failure(f"{type(error).__name__} at {_place(error.__traceback__)}", text[-3000:])


def _frames(trace: TracebackType | None) -> Iterator[tuple[str, int]]:
    while trace is not None:
        yield trace.tb_frame.f_code.co_filename, trace.tb_lineno
        trace = trace.tb_next


def _place(trace: TracebackType | None) -> str:
    """The innermost line of this project."""
    own = [(name, line) for name, line in _frames(trace) if name.startswith(_PACKAGE)]
    if not own:
        return "outside the project"
    name, line = own[-1]
    return f"{name[len(_PACKAGE) + 1 :]}:{line}: {linecache.getline(name, line).strip()}"


def resident() -> int:
    """Bytes of memory that this process holds now."""
    with open("/proc/self/statm", encoding="ascii") as stream:
        return int(stream.read().split()[1]) * resource.getpagesize()


@contextlib.contextmanager
def limits() -> Iterator[None]:
    """Inside, an input of more than 5 s ends in TooSlow, one that takes 500 MB more in MemoryError. For Linux."""
    gc.collect()
    with open("/proc/self/statm", encoding="ascii") as stream:
        address_space = int(stream.read().split()[0]) * resource.getpagesize()
    old = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (address_space + (MEGABYTES << 20), old[1]))
    previous = signal.signal(signal.SIGALRM, _too_slow)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
        resource.setrlimit(resource.RLIMIT_AS, old)


def _too_slow(_number: int, _frame: object) -> None:
    raise TooSlow(f"more than {SECONDS:g} s")


@contextlib.contextmanager
def timed() -> Iterator[None]:
    """Inside `limits`: begin to measure the time of one input."""
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
