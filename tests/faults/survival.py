"""What a run looks like that nothing happened to, and how one that faults happened to is compared with it."""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.job import EVERY, ITERATIONS, Job, arguments, command, losses_in, run_folder
from tests.launching import PRETRAIN, run_forked, scalars, succeed


@dataclass(frozen=True)
class Fault:
    """Something that happens to a run, as data.

    Attributes:
        name: what the table calls it.
        during: is called once the run trains, with the job and the case's own random numbers. The run need not survive.
        between: is called after that run's end, with the folder of its checkpoints.
        statuses: with which the run may end.
        says: what the run that suffers it must say, a part of a line; nothing if empty.
        then_says: what the next start of the same command must say.
        saves: whether the run must save before it ends, so that nothing is repeated.
        costs: finished checkpoints that it may cost: 0, or 1 where it damages the newest.
        flags: of the command, while it suffers.
        processes: of the run, which has a reference of its own.
        job: environment variables of the command, while it suffers.
        words: makes the command that starts the script from the script's own, such as a wrapper; None for the script
            alone.
        absent: why this machine cannot have it; empty where it can.
    """

    name: str
    during: Callable[[Job, random.Random], None] | None = None
    between: Callable[[Path, random.Random], None] | None = None
    statuses: tuple[int, ...] = (0,)
    says: str = ""
    then_says: str = ""
    saves: bool = False
    costs: int = 0
    flags: tuple[object, ...] = ()
    processes: int = 1
    job: Mapping[str, object] = field(default_factory=dict)
    words: Callable[[list[str]], list[str]] | None = None
    absent: Callable[[], str] = lambda: ""


@dataclass(frozen=True)
class Reference:
    """An uninterrupted run: its losses in the log and in TensorBoard, and each tensor of its last checkpoint."""

    iterations: int
    printed: Mapping[int, str]
    exact: Mapping[int, float]
    tensors: Mapping[str, str]


def uninterrupted(folder: Path, processes: int = 1, iterations: int = ITERATIONS) -> Reference:
    """Run the case to its end, with one save."""
    words = arguments(folder, iterations=iterations, SAVE_INTERVAL=iterations)
    printed = losses_in(succeed(run_forked(PRETRAIN, *words, processes=processes)))
    assert list(printed) == list(range(1, iterations + 1))
    last = tensors(run_folder(folder) / f"iter_{iterations:07d}")
    return Reference(iterations, printed, scalars(folder, "lm loss"), last)


def tensors(folder: Path) -> dict[str, str]:
    """Name → SHA-256 of each tensor's bytes of a checkpoint, read by torch alone."""
    import torch
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.default_planner import _EmptyStateDictLoadPlanner
    from torch.distributed.checkpoint.state_dict_loader import _load_state_dict

    state: dict = {}
    _load_state_dict(state, storage_reader=dcp.FileSystemReader(folder), planner=_EmptyStateDictLoadPlanner(), no_dist=True)
    found = {}
    for name, value in _flat("", state):
        if isinstance(value, torch.Tensor):
            found[name] = hashlib.sha256(value.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()
    return found


def _flat(prefix: str, value: object) -> list[tuple[str, object]]:
    if not isinstance(value, dict):
        return [(prefix, value)]
    return [pair for key, inner in value.items() for pair in _flat(f"{prefix}/{key}", inner)]


@dataclass
class Counts:
    """What a table says of faults."""

    faults: int = 0
    wrong: int = 0
    lost: int = 0
    repeated: int = 0
    tracebacks: int = 0
    left_behind: int = 0
    seconds: list[float] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


class Chain:
    """A run that suffers fault after fault, started again by the same command, and is at last let end.

    Every check of one fault is a sentence in `counts.problems`; without any, nothing was wrong.
    """

    def __init__(self, folder: Path, reference: Reference, processes: int = 1) -> None:
        self.folder, self.reference, self.processes = folder, reference, processes
        self.counts = Counts()
        self.last_said = ""  # what the run that suffered the last fault said
        self.saved = self.trained = 0  # the last finished checkpoint, the last iteration
        self._fault: Fault | None = None  # the last one, whose consequences the next start shows

    def suffer(self, fault: Fault, chance: random.Random) -> None:
        """Start the command, let the fault happen at a random moment of its first iterations, and judge its end."""
        words = command(self.folder, *fault.flags, iterations=self.reference.iterations)
        job = Job(fault.words(words) if fault.words else words, self.processes, fault.job)
        try:
            came_to = self._wait_for_a_step(job)
            if fault.during is not None:
                job.wait_for_iteration(min(self.reference.iterations - 1, came_to + chance.randrange(EVERY + 1)))
                time.sleep(chance.random() * 0.15)
                job.everyone()
                fault.during(job, chance)
            status = job.finish()
            self._judge(job, fault, status)
        finally:
            job.end()
        if fault.between is not None:
            fault.between(run_folder(self.folder), chance)
        self._fault = fault

    def complete(self) -> None:
        """Let the run end, and compare everything with the reference."""
        iterations = self.reference.iterations
        job = Job(command(self.folder, iterations=iterations), self.processes)
        try:
            self._wait_for_a_step(job)
            status = job.finish()
            self._judge(job, Fault("none"), status, counted=False)
        finally:
            job.end()
        if status == 0:
            exact = scalars(self.folder, "lm loss")
            differing = [number for number, loss in exact.items() if loss != self.reference.exact[number]]
            if differing:
                self._wrong(f"losses of iterations {differing} have other bits")
            found = tensors(run_folder(self.folder) / f"iter_{iterations:07d}")
            if found != self.reference.tensors:
                names = sorted(name for name in self.reference.tensors if found.get(name) != self.reference.tensors[name])
                self._wrong(f"the last checkpoint differs in {len(names)} tensors, {names[:3]} among them")

    def _wait_for_a_step(self, job: Job) -> int:
        """Wait for the first iteration, and judge what the fault before has cost; returns that iteration."""
        first = job.went_on_from() + 1
        job.wait_for(r" iteration +\d+/ |nothing is left to do")
        first = job.went_on_from() + 1
        if self._fault is not None:
            lost = (self.saved - job.went_on_from()) / EVERY
            if lost > self._fault.costs:
                self.counts.lost += 1
                self.counts.problems.append(f"{self._fault.name}: {self.saved} was saved, and it went on from {first - 1}")
            self.counts.repeated += max(0, self.trained - first + 1)
            if self._fault.saves and self.trained != first - 1:
                self.counts.problems.append(f"{self._fault.name}: it came to {self.trained}, and went on from {first - 1}")
            if job.first_step is not None:
                self.counts.seconds.append(job.first_step)
            if self._fault.then_says not in job.said:
                self.counts.problems.append(f"{self._fault.name}: nothing says {self._fault.then_says!r}:\n{job.said[-3000:]}")
            self._fault = None
        return first

    def _judge(self, job: Job, fault: Fault, status: int, counted: bool = True) -> None:
        """What a run that has ended shows by itself."""
        counts, said = self.counts, job.said
        self.last_said = said
        counts.faults += counted
        left = job.survivors()
        if left:
            counts.left_behind += len(left)
            counts.problems.append(f"{fault.name}: left behind: {[(one.pid, one.cmdline()[:6]) for one in left]}")
        if "Traceback (most recent call last)" in said:
            counts.tracebacks += 1
            counts.problems.append(f"{fault.name}: a traceback:\n{said[-6000:]}")
        if status not in fault.statuses or fault.says not in said:
            counts.problems.append(f"{fault.name}: status {status}, and {fault.says!r} should be said:\n{said[-3000:]}")
        for number, loss in job.losses().items():
            if loss != self.reference.printed[number]:
                self._wrong(f"{fault.name}: iteration {number} had loss {loss}, uninterrupted {self.reference.printed[number]}")
        self.saved = max(job.last_saved(), job.went_on_from())
        self.trained = max(job.losses(), default=job.went_on_from())

    def _wrong(self, problem: str) -> None:
        self.counts.wrong += 1
        self.counts.problems.append(problem)


def chance_of(seed: int, number: int) -> random.Random:
    """The random numbers of a case, which its seed and number alone decide."""
    return random.Random(f"{seed}/{number}")
