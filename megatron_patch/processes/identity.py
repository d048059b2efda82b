"""Which process of which machine: an identity that no other process ever has. Imports no torch."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")


@dataclass(frozen=True)
class Identity:
    """A process, told from all others.

    A number alone is given again once its process has ended, and each container counts from 1. So the start time, the
    boot of the machine and the space of process numbers belong to it.

    Attributes:
        host: the machine's or container's name, for people.
        boot: the kernel's random name of this boot of the machine.
        space: the kernel's name for the space in which `pid` counts, one a container.
        pid: the process's number there.
        started: when it started, in the kernel's ticks since the boot.
    """

    host: str
    boot: str
    space: str
    pid: int
    started: int

    def is_visible(self) -> bool:
        """Whether this process can see whether that one lives: same boot, same space of numbers."""
        return bool(self.boot and self.space) and (self.boot, self.space) == (_boot(), _space())

    def lives(self) -> bool:
        """Whether a visible process is still there. A killed one whose parent has not yet asked for it is not."""
        return _stat(self.pid) == (self.started, True)


def own_identity() -> Identity:
    """This process."""
    return Identity(socket.gethostname(), _boot(), _space(), os.getpid(), _stat(os.getpid())[0])


def _boot() -> str:
    try:
        return (_PROC / "sys/kernel/random/boot_id").read_text().strip()
    except OSError:  # some sandboxes hide it; then the heartbeat alone decides
        return ""


def _space() -> str:
    try:
        return os.readlink(_PROC / "self/ns/pid")
    except OSError:
        return ""


def parent_of(pid: int) -> int:
    """The number of a process's parent; -1 where there is no such process."""
    fields = _fields(pid)
    return int(fields[1]) if fields else -1


def _stat(pid: int) -> tuple[int, bool]:
    """(start time in ticks, whether it runs) of a process; (-1, False) where there is none."""
    fields = _fields(pid)
    return (int(fields[19]), fields[0] not in "ZX") if fields else (-1, False)


def _fields(pid: int) -> list[str]:
    """What the kernel says of a process, from its state on; nothing where there is none."""
    try:
        text = (_PROC / str(pid) / "stat").read_text(errors="replace")
    except OSError:
        return []
    return text.rpartition(")")[2].split()  # the name before it may hold anything
