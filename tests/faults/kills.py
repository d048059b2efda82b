"""Faults of processes: what is killed, stopped or signalled, as data."""

from __future__ import annotations

import random
import signal

from tests.faults.job import Job
from tests.faults.survival import Fault

_KILLED = 128 + signal.SIGKILL


def kill_a_rank(job: Job, chance: random.Random) -> None:
    """SIGKILL of one training process: what the kernel does where memory is short."""
    chance.choice(job.ranks()).kill()


def kill_everything(job: Job, chance: random.Random) -> None:
    """SIGKILL of every process, in a random order: a machine is lost."""
    everyone = job.everyone()
    chance.shuffle(everyone)
    for one in everyone:
        if one.is_running():
            one.kill()


FAULTS = (
    Fault("SIGKILL of a rank", kill_a_rank, statuses=(_KILLED,), says="with status 137"),
    Fault("SIGKILL of everything", kill_everything, statuses=(_KILLED,)),
)
