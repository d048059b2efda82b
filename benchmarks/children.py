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
