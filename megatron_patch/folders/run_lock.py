"""Which run holds a checkpoint folder: one at a time, and a dead one lets go by itself. Imports no torch.

A run that wants the folder puts a file of its own there, `run.lock.NAME`, and looks for the others' files afterwards.
It holds the folder if there is none of a living run. Of two that start together the later one to look therefore sees
the other, so both never hold it; if both look late, both step back and try again. Each file belongs to one process for
ever, so a dead one's can be removed without taking another's away, and neither links nor exclusive creation, which not
every shared file system has, are needed.

A run that gave no sign of life may have been taken for dead, and its file been removed. It finds that at its next
heartbeat, and goes the same way again: its file first, then a look. If there is anybody, also one that only wants the
folder yet, it ends: that one may have looked while the file was gone. Nobody there means that somebody has removed the
file alone.

A file says host, boot, process and start time, and is written anew every BEAT seconds. Whether its run lives:

* on this machine and in this container: whether the process with that number and start time is there. Heartbeats do
  not count, since a stopped process may go on.
* elsewhere: its last heartbeat is older than STALE seconds on the file system's own clock, which writing one's own file
  tells, so that clocks of machines need not agree. A younger one is watched until it beats again or has become stale.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from megatron_patch.errors import UserError
from megatron_patch.processes.identity import Identity, own_identity

BEAT = 5.0  # seconds between two heartbeats
STALE = 60.0  # seconds without one after which a run of another machine counts as dead
PREFIX = "run.lock."
_SIZE = 1024  # bytes of a file, whatever it says: it is written in place, and never seen half
_SINCE = "%Y-%m-%d %H:%M:%S"
_ROUNDS = 40  # in which two that start together get out of each other's way


@dataclass(frozen=True)
class _Seen:
    """Another's file at one look."""

    path: Path
    owner: Identity
    holds: bool  # else it is still looking itself
    since: str
    beat: int  # counts its heartbeats
    written: float  # on the file system's clock


class RunLock:
    """A folder that this process holds, or is about to. `path` is its file."""

    def __init__(self, root: Path, path: Path, owner: Identity, since: str) -> None:
        self.root, self.path, self.owner, self.since = root, path, owner, since
        self._beats = 0

    def write(self, *, holds: bool) -> float:
        """Write the file in place, a heartbeat on; returns when that was, on the file system's clock."""
        self._beats += 1
        content = {**asdict(self.owner), "holds": holds, "since": self.since, "beat": self._beats}
        text = json.dumps(content).encode().ljust(_SIZE - 1) + b"\n"
        with open(self.path, "r+b", buffering=0) as stream:
            stream.write(text)
            os.fsync(stream.fileno())
            return os.fstat(stream.fileno()).st_mtime

    def beat(self) -> None:
        """Say that this run lives.

        Raises:
            UserError: another run has taken the folder meanwhile, because this one gave no sign of life.
        """
        with contextlib.suppress(FileNotFoundError):
            self.write(holds=True)
            return
        if self.root.is_dir():  # somebody has removed the file
            self._come_back()

    def _come_back(self) -> None:
        now = _create(self)
        for other in _others(self):
            if _alive(other, now, other.beat) is not False:
                self.release()
                raise UserError(f"{_held(self.root, other)} It took the folder after this run had given no sign of life.")
        self.write(holds=True)

    def release(self) -> None:
        """Let go. The folder goes too if nothing else came into it."""
        with contextlib.suppress(OSError):  # the folder may have gone, or its disk; a stale file says the same later
            self.path.unlink()
            self.root.rmdir()


def take(root: str | Path, tell: Callable[[str], None]) -> RunLock:
    """Hold the checkpoint folder `root` for this process; `tell` gets a line where it has to wait.

    Raises:
        UserError: another run holds it.
        OSError: the folder cannot be made or written.
    """
    root = Path(root)
    for _ in range(_ROUNDS):
        root.mkdir(parents=True, exist_ok=True)
        owner = own_identity()
        name = f"{PREFIX}{owner.host}.{owner.pid}.{uuid.uuid4().hex[:8]}"
        lock = RunLock(root, root / name, owner, time.strftime(_SINCE))
        _create(lock)
        try:
            if _is_alone(lock, tell):
                lock.write(holds=True)
                return lock
        except BaseException:
            lock.release()
            raise
        lock.release()
        time.sleep(random.uniform(0.02, 0.4))
    raise UserError(f"{root}: several runs are being started for this folder at the same time; start one.")


def taken(root: str | Path, path: str | Path) -> RunLock:
    """The lock whose file is `path` and which this process took before it became another program.

    The file may have gone meanwhile, if that took long; the next heartbeat says what that means.
    """
    try:
        since = str(json.loads(Path(path).read_bytes())["since"])
    except FileNotFoundError:
        since = time.strftime(_SINCE)
    return RunLock(Path(root), Path(path), own_identity(), since)


def _create(lock: RunLock) -> float:
    """Make the file: whole before it has a name that others look for. Returns as `RunLock.write` does."""
    partial = lock.path.with_name(f"taking.{lock.path.name}")
    partial.write_bytes(b" " * _SIZE)
    visible, lock.path = lock.path, partial
    try:
        now = lock.write(holds=False)
        os.replace(partial, visible)
        return now
    finally:
        lock.path = visible


def _is_alone(lock: RunLock, tell: Callable[[str], None]) -> bool:
    """Whether no living run holds or wants the folder; False where another is just looking too.

    Raises:
        UserError: one holds it.
    """
    told = False
    first_look: dict[Path, int] = {}
    while True:
        now, waits = lock.write(holds=False), False
        for other in _others(lock):
            alive = _alive(other, now, first_look.setdefault(other.path, other.beat))
            if alive is False:
                _remove(other.path)
            elif alive is None:
                waits = True
                if not told:
                    tell(_watching(other))
                    told = True
            elif other.holds:
                raise UserError(_held(lock.root, other))
            else:
                return False
        if not waits:
            return True
        time.sleep(1)


def _alive(other: _Seen, now: float, first_beat: int) -> bool | None:
    """Whether the other's process lives; None while only time can tell."""
    if other.owner.is_visible():
        return other.owner.lives()
    if other.beat != first_beat:
        return True
    return False if now - other.written > STALE else None


def _others(lock: RunLock) -> list[_Seen]:
    return [seen for path in sorted(lock.root.glob(f"{PREFIX}*")) if path != lock.path and (seen := _look(path)) is not None]


def _look(path: Path) -> _Seen | None:
    """What another's file says; None once it has gone. What is no such file counts as left over by a dead run."""
    try:
        with open(path, "rb") as stream:
            text, written = stream.read(_SIZE), os.fstat(stream.fileno()).st_mtime
    except FileNotFoundError:
        return None
    try:
        content = json.loads(text)
        owner = Identity(**{one.name: content[one.name] for one in fields(Identity)})
        return _Seen(path, owner, content["holds"] is True, str(content["since"]), int(content["beat"]), written)
    except (ValueError, TypeError, KeyError):
        return _Seen(path, Identity("an unknown host", "", "?", 0, 0), True, "an unknown time", 0, written)


def _remove(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):  # another start has seen the same
        path.unlink()


def _held(root: Path, other: _Seen) -> str:
    return (
        f"{root} is held by another run: process {other.owner.pid} on {other.owner.host}, since {other.since}. One run at a "
        "time writes there: wait for its end, stop it, or write another OUTPUT_BASEPATH."
    )


def _watching(other: _Seen) -> str:
    return (
        f"process {other.owner.pid} on {other.owner.host}, which cannot be seen from here, held the checkpoint folder; "
        f"waiting up to {STALE:.0f} s for a sign of life."
    )
