"""Whether this machine's memory holds the state of all its ranks beside the training."""

from __future__ import annotations

import megatron_patch.core.device  # noqa: F401  prepares megatron-core for this machine

import os
import socket
from pathlib import Path

import psutil

from megatron_patch.core import parallel

_SHARE = 0.9  # of what is free
_CGROUP = Path("/sys/fs/cgroup")
# Of each version of control groups: the files of limit, use and statistics, and what the page cache is called there.
_NAMES = (
    ("memory.max", "memory.current", "memory.stat", "inactive_file", "active_file"),
    (
        "memory/memory.limit_in_bytes",
        "memory/memory.usage_in_bytes",
        "memory/memory.stat",
        "total_inactive_file",
        "total_active_file",
    ),
)


def too_little(state: int, files: int, folder: Path) -> str:
    """Why checkpoints cannot be written beside the training; empty if they can. Every rank calls it.

    Args:
        state: bytes of host memory that this rank needs for its state.
        files: bytes that it writes, which take memory as well if they go to a RAM disk.
        folder: where it writes.
    """
    asked = state + files * in_memory(folder)
    everybodys = parallel.from_all_ranks((socket.gethostname(), asked, free()))
    for host in dict.fromkeys(name for name, _, _ in everybodys):
        needed = sum(size for name, size, _ in everybodys if name == host)
        there = min(left for name, _, left in everybodys if name == host)
        if needed > there * _SHARE:
            return (
                f"{host} has {there / 1e9:.1f} GB of memory free, and writing a checkpoint beside the training takes "
                f"{needed / 1e9:.1f} GB: checkpoints are written tensor by tensor, while the training waits."
            )
    return ""


def free() -> int:
    """Bytes that this machine, or this container, can still give."""
    return min(psutil.virtual_memory().available, left_to_container())


def left_to_container(folder: Path = _CGROUP) -> int:
    """Bytes below the container's limit, or all of the machine's where it has none.

    What its page cache holds counts as free. folder: where the kernel shows control groups, of version 2 or 1.
    """
    everything = psutil.virtual_memory().total
    names = next((one for one in _NAMES if (folder / one[0]).is_file()), None)
    if names is None:
        return everything
    limit, used, statistics = ((folder / name).read_text().strip() for name in names[:3])
    kept = dict(line.split() for line in statistics.splitlines())
    cache = sum(int(kept.get(name, 0)) for name in names[3:])
    return everything if limit == "max" else min(everything, int(limit) - int(used) + cache)


def in_memory(folder: Path) -> bool:
    """Whether what is written there lies in memory, on a RAM disk."""
    # os.path's `exists` takes an error for no: whoever writes there says what it is.
    there = next(one for one in (folder, *folder.parents) if os.path.exists(one)).resolve()
    disks = {Path(disk.mountpoint): disk.fstype for disk in psutil.disk_partitions(all=True)}
    mount = next((one for one in (there, *there.parents) if os.path.ismount(one)), Path("/"))
    return disks.get(mount) in ("tmpfs", "ramfs")
