"""Who ends with whom: ranks with torchrun, loaders with their rank, torchrun with a script that waits for it.

Imports no torch.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

from megatron_patch.processes import identity

_PR_SET_PDEATHSIG = 1
_TORCHRUN = "MEGATRON_PATCH_TORCHRUN"  # torchrun's process number, in the environment of its ranks


def announce_torchrun() -> None:
    """Let this process's children know it, before they are started."""
    os.environ[_TORCHRUN] = str(os.getpid())


def end_with_torchrun() -> None:
    """Have the kernel kill this rank when torchrun dies, by whatever cause; torchrun cannot do it when it is killed.

    Nothing happens in a process that this project's torchrun has not started.

    Raises:
        SystemExit: torchrun had died before the kernel was asked.
    """
    started_by = os.environ.get(_TORCHRUN)
    if started_by is not None:
        end_with_parent(int(started_by))


def end_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent dies.

    Args:
        parent: the parent's number, known before this process was started: if it has died since, the kernel would wait
            for another's death.

    Raises:
        SystemExit: it has died.
        OSError: the kernel refuses.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) was refused")
    if os.getppid() != parent:
        sys.exit(128 + signal.SIGKILL)


def is_child(pid: int) -> bool:
    """Whether that process is a child of this one. One that has ended stays it until this one asks for its status."""
    return identity.parent_of(pid) == os.getpid()


def waiting_parent() -> int | None:
    """The parent's number if it is a script that waits for this process, else None. The process that ends by itself
    with such a script must not outlive it.

    Whoever means a run to outlive the shell says so: `nohup` ignores SIGHUP, `&` in a script ignores SIGINT, a job of
    an interactive shell, `setsid` and most supervisors make a process group. Then None is returned. Process 1 takes
    everything with it anyway.
    """
    parent = os.getppid()
    left_alone = any(signal.getsignal(one) is signal.SIG_IGN for one in (signal.SIGHUP, signal.SIGINT))
    if parent <= 1 or left_alone:
        return None
    try:
        return parent if os.getpgid(parent) == os.getpgrp() else None
    except ProcessLookupError:
        return None
