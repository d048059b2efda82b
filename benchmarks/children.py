"""Processes that end with the benchmark that starts them: one that is killed must not leave a model in a GPU's memory.

The kernel ends them, when the thread that started them does: start them from the main one.
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import psutil

from megatron_patch.processes.parents import end_with_parent


def pool(processes: int) -> ProcessPoolExecutor:
    """New processes that end with this one."""
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(processes, mp_context=context, initializer=end_with_parent, initargs=(os.getpid(),))


def alone(function: Callable[..., dict | None], *arguments: object) -> dict | None:
    """Call `function` in a new process. Only a process that ends gives all of a model's GPU memory back."""
    with pool(1) as one:
        return one.submit(_and_leave, function, *arguments).result()


def together(processes: int, function: Callable[..., dict | None], *arguments: object) -> list[dict | None]:
    """Call `function` in new processes that are the ranks of one run, as torchrun would name them."""
    with pool(processes) as ranks:
        calls = [ranks.submit(_as_rank, rank, processes, function, *arguments) for rank in range(processes)]
        return [call.result() for call in calls]


def _as_rank(rank: int, processes: int, function: Callable[..., dict | None], *arguments: object) -> dict | None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(processes), LOCAL_WORLD_SIZE=str(processes))
    return _and_leave(function, *arguments)


def _and_leave(function: Callable[..., dict | None], *arguments: object) -> dict | None:
    """Call `function`, and leave its process groups."""
    try:
        return function(*arguments)
    finally:
        from megatron_patch.core import parallel

        parallel.stop()


def end_with_me() -> Callable[[], None]:
    """For `preexec_fn` of a command: it ends with this process, and torchrun's ranks with it."""
    return functools.partial(end_with_parent, os.getpid())


def kill_tree(pid: int) -> None:
    """End torchrun and its workers, which have sessions of their own. When it returns, their GPU memory is free."""
    try:
        root = psutil.Process(pid)
        processes = [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=60)
