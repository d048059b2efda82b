"""From a training script's arguments to torchrun: check everything, say what was decided, become torchrun.

`python -m megatron_patch.launch TASK --flags`. Imports no torch, so that a usage error costs no seconds.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

from megatron_patch.arguments.argument import Script
from megatron_patch.arguments.evaluation import read_evaluation
from megatron_patch.arguments.evaluation_list import EVALUATE
from megatron_patch.arguments.generation import read_generation
from megatron_patch.arguments.generation_list import GENERATE
from megatron_patch.arguments.gpus import find_driver, find_torch, unusable_gpus, visible_gpus
from megatron_patch.arguments.processes import Processes, busy_port
from megatron_patch.arguments.serving import read_chat, read_serve
from megatron_patch.arguments.serving_list import CHAT, SERVE
from megatron_patch.arguments.trained_model import JobReading, UsesModel
from megatron_patch.arguments.training import LISTS, Reading, read
from megatron_patch.errors import UserError, print_any_text, sentence
from megatron_patch.folders.checkout import ROOT
from megatron_patch.folders.engine import choose_engine
from megatron_patch.folders.fingerprint import compared_by_nodes
from megatron_patch.folders.other_runs import offers
from megatron_patch.folders.run_lock import take
from megatron_patch.folders.starting_point import Start, find_start
from megatron_patch.language.sentences import fill, in_language
from megatron_patch.plan.run_start import dry_run_lines, expected_memory, run_shape
from megatron_patch.processes.inherited import GRACE, LOCK, MEETING
from megatron_patch.processes.signals import end_at_once

# What uses a trained model: its list, and the reader of its arguments.
_USERS: dict[str, tuple[Script, Callable[[list[str]], JobReading[UsesModel]]]] = {
    "generate": (GENERATE, read_generation),
    "evaluate": (EVALUATE, read_evaluation),
    "chat": (CHAT, read_chat),
    "serve": (SERVE, read_serve),
}
_NAMES = {task: script.name for task, script in (LISTS | {task: script for task, (script, _) in _USERS.items()}).items()}


def torchrun_command(task: str, processes: Processes, argv: list[str]) -> list[str]:
    """torchrun's command line for this node; `argv` is handed on untouched, without a shell."""
    return [
        sys.executable,
        "-m",
        "megatron_patch.torchrun",
        f"--nnodes={processes.nodes}",
        f"--node-rank={processes.node_rank}",
        f"--nproc-per-node={processes.per_node}",
        f"--max-restarts={processes.max_restarts}",
        f"--master-addr={processes.master_addr}",
        f"--master-port={processes.master_port}",
        "-m",
        f"megatron_patch.cli.{task}",
        *argv,
    ]


def usable_python_path(engine: str | None) -> tuple[list[str], list[str]]:
    """(PYTHONPATH's folders, those left out of them).

    A source tree of Megatron there would be imported instead of the engine that was chosen, so it is left out.
    """
    folders = [folder for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep) if folder]
    left_out = [folder for folder in folders if engine is None and _is_megatron_tree(Path(folder))]
    return [folder for folder in folders if folder not in left_out], left_out


def _is_megatron_tree(folder: Path) -> bool:
    return (folder / "megatron").is_dir() and not any(folder.glob("megatron_core-*.dist-info"))


def worker_environment(engine: str | None, inherited: list[str], tensor_parallel: bool) -> dict[str, str]:
    """The environment of the training processes, in which this project and MEGATRON_PATH's tree can be imported."""
    environment = dict(os.environ)
    environment["PYTHONPATH"] = os.pathsep.join(path for path in (engine, str(ROOT), *inherited) if path)
    if tensor_parallel:
        # Megatron's overlap of communication and products relies on kernels starting in the order of their launch.
        environment.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
    # Registering the buffers of recorded collectives does not go together with expandable segments.
    environment.setdefault("NCCL_GRAPH_REGISTER", "0")
    # Collectives of several communicators (tensor and data parallel) run in the order of their launch. So no two ranks
    # wait for each other in different ones. NCCL has this setting from 2.26 on.
    environment.setdefault("NCCL_LAUNCH_ORDER_IMPLICIT", "1")
    environment.setdefault("OMP_NUM_THREADS", "1")
    environment.setdefault("TOKENIZERS_PARALLELISM", "false")
    environment.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    return environment


def _refuse_unusable_gpus() -> None:
    """UserError where this machine has GPUs that torch cannot use: everything would run on the CPU without a word."""
    if found := unusable_gpus(find_driver(), find_torch()):
        raise UserError(found)


def start_user(task: str, flags: list[str]) -> None:
    """Become the program that uses a trained model: this process itself if one is enough, otherwise torchrun.

    Raises:
        UserError, OSError: what the arguments name cannot be used.
    """
    reading = _USERS[task][1](flags)
    _refuse_unusable_gpus()
    for note in reading.notes:
        print(in_language(note), flush=True)
    inherited, _ = usable_python_path(None)
    environment = worker_environment(None, inherited, reading.job.model.tensor_model_parallel_size > 1)
    command = [sys.executable, "-m", f"megatron_patch.cli.{task}", *flags]
    if reading.processes.world_size > 1:
        command = torchrun_command(task, reading.processes, flags)
    os.execve(command[0], command, environment)


def main(argv: list[str]) -> None:
    """Check everything, and become the program of the task that `argv` names first."""
    if not argv or argv[0] not in _NAMES:
        sys.exit(f"usage: python -m megatron_patch.launch {{{','.join(_NAMES)}}} --flags")
    task, flags = argv[0], argv[1:]
    print_any_text()
    try:
        start = start_user if task in _USERS else _start
        start(task, flags)
    except (UserError, OSError) as error:
        print(f"{_NAMES[task]}: {in_language(sentence(error))}", file=sys.stderr)
        sys.exit(2)


def _start(task: str, flags: list[str]) -> None:
    """Everything up to torchrun, which takes this process's place.

    Raises:
        UserError, OSError: what the arguments name cannot be used.
    """
    reading = read(task, flags)
    _refuse_unusable_gpus()
    engine, line = choose_engine(reading.megatron_path)
    print(in_language(line), flush=True)
    inherited, left_out = usable_python_path(engine)
    for folder in left_out:
        print(fill("PYTHONPATH names {}, which holds another Megatron; it is left out.", folder), flush=True)
    for note in reading.notes:
        print(in_language(note), flush=True)
    memory = find_driver().memory if visible_gpus() else 0
    print(in_language(expected_memory(run_shape(reading.config, reading.processes.world_size), memory)), flush=True)
    if not reading.dry_run and (busy := busy_port(reading.processes)):
        raise UserError(busy)
    with _folder_held(reading) as held:
        start = find_start(reading.config)
        for line in (*start.lines, *(offers(reading.config, start.origin) if start.folder is None else ())):
            print(in_language(line), flush=True)
        if reading.dry_run:
            _end_dry_run(reading)
        command = torchrun_command(task, reading.processes, flags)
        environment = worker_environment(engine, inherited, reading.config.tensor_model_parallel_size > 1) | held
        environment[GRACE] = str(reading.config.options.exit_grace_seconds)
        environment[MEETING] = json.dumps(_meeting(reading, start))
        os.execve(command[0], command, environment)


def _meeting(reading: Reading, start: Start) -> dict[str, object]:
    """What nodes must know to meet, and what they compare."""
    config, options = start.config, start.config.options
    met = {"minutes": options.rendezvous_timeout_minutes, "output": os.path.abspath(config.output_path)}
    if reading.processes.nodes == 1:
        return met
    reads_load = start.folder is None or config.lora is not None
    return {**met, "local": options.local_output, "inputs": compared_by_nodes(config, start.origin, reads_load=reads_load)}


@contextlib.contextmanager
def _folder_held(reading: Reading) -> Iterator[dict[str, str]]:
    """Hold the checkpoint folder for this process and for torchrun, which it becomes; gives what torchrun must know.

    The first node holds it for all, or each node its own.

    Raises:
        UserError: another run holds it.
    """
    if reading.dry_run or (reading.processes.node_rank and not reading.config.options.local_output):
        yield {}
        return
    lock = take(reading.config.checkpoint_folder, lambda line: print(in_language(line), flush=True))
    try:
        yield {LOCK: str(lock.path)}
    finally:  # it did not become torchrun
        lock.release()


def _end_dry_run(reading: Reading) -> NoReturn:
    """Say what the run would do, and end.

    Raises:
        SystemExit: status 0.
    """
    for line in dry_run_lines(reading.config, reading.processes.world_size):
        print(in_language(line))
    print(json.dumps(reading.config.as_dict(), ensure_ascii=False, indent=1))
    sys.exit(0)


if __name__ == "__main__":
    end_at_once()
    main(sys.argv[1:])
