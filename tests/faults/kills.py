"""Faults of processes: what is killed, stopped or signalled, as data."""

from __future__ import annotations

import os
import random
import shlex
import signal
import socket

import psutil

from tests.faults.job import Job
from tests.faults.survival import Fault

_KILLED = 128 + signal.SIGKILL
_TERM, _INT = 128 + signal.SIGTERM, 128 + signal.SIGINT


def send(process: psutil.Process, number: int) -> None:
    """A signal to a process that may have ended meanwhile."""
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return


def kill_a_rank(job: Job, chance: random.Random) -> None:
    """SIGKILL of one training process: what the kernel does where memory is short."""
    send(chance.choice(job.ranks()), signal.SIGKILL)


def kill_everything(job: Job, chance: random.Random) -> None:
    """SIGKILL of every process, in a random order: a machine is lost."""
    everyone = job.everyone()
    chance.shuffle(everyone)
    for one in everyone:
        send(one, signal.SIGKILL)


def kill_torchrun(job: Job, chance: random.Random) -> None:
    """SIGKILL of torchrun, which is the script's own process too."""
    send(job.launcher(), signal.SIGKILL)


def kill_the_wrapper(job: Job, chance: random.Random) -> None:
    """SIGKILL of a script that waits for the documented one."""
    job.process.kill()


def to_the_command(number: int):
    """A signal to what was started: the documented script, or a wrapper."""
    return lambda job, chance: job.process.send_signal(number)


def to_the_group(number: int):
    """A signal to the process group of what was started: Ctrl-C on a terminal."""
    return lambda job, chance: os.killpg(job.process.pid, number)


def to_all(number: int):
    """A signal to every process of the job at once, the data loaders too: systemd, cgroups and Kubernetes."""

    def inject(job: Job, chance: random.Random) -> None:
        everyone = job.everyone()
        chance.shuffle(everyone)
        for one in everyone:
            send(one, number)

    return inject


def again_and_again(job: Job, chance: random.Random) -> None:
    """SIGTERM to everyone many times, as from several senders that do not know of each other."""
    for _ in range(5):
        to_all(signal.SIGTERM)(job, chance)


def waiting_script(words: list[str]) -> list[str]:
    """A wrapper that starts the script and waits for it, as many job files do."""
    return ["bash", "-c", f"{shlex.join(words)}\nstatus=$?\nexit $status"]


def kill_and_watch_it_start_again(job: Job, chance: random.Random) -> None:
    """SIGKILL of a rank; torchrun starts the run again by itself. Then it is stopped."""
    kill_a_rank(job, chance)
    said = job.wait_for("the run is started again from its last checkpoint \\(1 of 2, MAX_RESTARTS\\)")
    # Behind all that was trained before: what the new process saves is then the last that the run came to.
    job.wait_for(rf" iteration +{max(job.losses()) + 1}/ ", after=said)
    job.process.terminate()


def twice(words: list[str]) -> list[str]:
    """Two starts of one command at the same time."""
    return ["bash", "-c", f"{shlex.join(words)} & {shlex.join(words)} & wait"]


def start_another(job: Job, chance: random.Random) -> None:
    """The same command while it runs; then the first one is stopped."""
    other = Job([*job.words], 1)
    assert other.finish() == 2, other.said[-4000:]
    named = f"is held by another run: process {job.launcher().pid} on {socket.gethostname()}, since "
    assert named in other.said and "Traceback" not in other.said, other.said[-4000:]
    send(job.launcher(), signal.SIGTERM)


_SAVED = "stopping at iteration"
_BESIDE = ("--async-save", "true")
FAULTS = (
    Fault("SIGKILL of a rank", kill_a_rank, statuses=(_KILLED,), says="with status 137"),
    Fault("SIGKILL of everything", kill_everything, statuses=(_KILLED,)),
    Fault("SIGKILL of torchrun", kill_torchrun, statuses=(_KILLED,)),
    Fault("SIGKILL of a waiting script", kill_the_wrapper, statuses=(_KILLED,), says=_SAVED, words=waiting_script),
    Fault("SIGTERM to the script", to_the_command(signal.SIGTERM), statuses=(_TERM,), says=_SAVED, saves=True),
    Fault("SIGINT to the script", to_the_command(signal.SIGINT), statuses=(_INT,), says=_SAVED, saves=True),
    Fault("SIGTERM to a waiting script", to_the_command(signal.SIGTERM), statuses=(_TERM,), says=_SAVED, saves=True,
          words=waiting_script),
    Fault("Ctrl-C", to_the_group(signal.SIGINT), statuses=(_INT,), says=_SAVED, saves=True),
    Fault("Ctrl-C in a waiting script", to_the_group(signal.SIGINT), statuses=(_INT,), says=_SAVED, saves=True,
          words=waiting_script),
    Fault("SIGTERM to every process", to_all(signal.SIGTERM), statuses=(_TERM,), says=_SAVED, saves=True),
    Fault("SIGINT to every process", to_all(signal.SIGINT), statuses=(_INT,), says=_SAVED, saves=True),
    Fault("SIGKILL of a rank, and MAX_RESTARTS", kill_and_watch_it_start_again, statuses=(_TERM,), says=_SAVED, saves=True,
          job={"MAX_RESTARTS": 2}),
    Fault("two starts at once", to_the_group(signal.SIGTERM), statuses=(_TERM,), says="is held by another run", saves=True,
          words=twice),
    Fault("a start beside a run", start_another, statuses=(_TERM,), says=_SAVED, saves=True),
    Fault("SIGTERM to every process, many times", again_and_again, statuses=(_TERM,), says=_SAVED, saves=True),
    Fault("SIGKILL of a rank that saves beside the training", kill_a_rank, statuses=(_KILLED,), says="with status 137",
          flags=_BESIDE),
    Fault("SIGTERM to every process of a run that saves beside the training", to_all(signal.SIGTERM), statuses=(_TERM,),
          says=_SAVED, saves=True, flags=_BESIDE),
)  # fmt: skip
