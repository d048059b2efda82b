"""Faults of two processes, of which one stands still: the run ends, and names it."""

from __future__ import annotations

import random
import signal

from tests.faults.job import Job
from tests.faults.kills import send
from tests.faults.survival import Fault

_MINUTES = 0.1  # --distributed-timeout-minutes


def stop_rank(number: int):
    """SIGSTOP of a training process: as a debugger does, or a machine that stands still."""
    return lambda job, chance: send(job.ranks()[number], signal.SIGSTOP)


def stop_a_loader(job: Job, chance: random.Random) -> None:
    """SIGSTOP of the process that loads the data of one rank, as of one that hangs in a file system."""
    loaders = job.ranks()[1].children()
    for one in loaders:
        send(one, signal.SIGSTOP)


_FLAGS = ("--distributed-timeout-minutes", _MINUTES)
FAULTS = (
    Fault("SIGSTOP of the first rank", stop_rank(0), statuses=(1,), flags=_FLAGS, processes=2,
          says="the run was ended: rank 0 (process "),
    Fault("SIGSTOP of the rank that writes the log", stop_rank(1), statuses=(1,), flags=_FLAGS, processes=2,
          says="the run was ended: rank 1 (process "),
    Fault("a loader stands still", stop_a_loader, statuses=(1,), flags=_FLAGS, processes=2,
          says="has stood still for 0.1 min at iteration "),
)  # fmt: skip
