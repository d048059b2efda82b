"""Trainings and conversions of tests, in processes forked from one that has imported everything.

A training on two ranks imports torch and megatron-core three times, for torchrun and each rank, and those eight
seconds are most of what a tiny model's run takes. Here one process imports them once, and each run's launcher and
ranks are forked from it. They are processes of their own, with the environment and the arguments that the script and
torchrun would give them.

What is about the scripts, torchrun or signals starts the documented scripts themselves (`tests.launching.run`).
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from megatron_patch.arguments.processes import free_port

_server: list[subprocess.Popen[str]] = []
_QUIET = ("ignore", None, Warning, None, 0)  # what Python makes of PYTHONWARNINGS=ignore
_GRACE = 15.0  # seconds in which the other ranks end by themselves after one has failed


def forked(
    module: str, argv: list[str], environment: Mapping[str, str], cwd: Path, timeout: float, ranks: int = 0
) -> subprocess.CompletedProcess[str]:
    """`python -m module argv`, with its output and errors as one text.

    Args:
        ranks: so many processes run the module, with torchrun's variables; 0: one does, without them.

    Raises:
        TimeoutError: it took longer than `timeout` seconds; whatever it had started has been killed.
    """
    if not _server or _server[0].poll() is not None:
        _server[:] = [_start(environment)]
        atexit.register(_stop)
    with tempfile.NamedTemporaryFile("r", encoding="utf-8", errors="replace") as output:
        asked = {"module": module, "argv": argv, "environment": dict(environment), "cwd": str(cwd)}
        answer = _ask(json.dumps(asked | {"output": output.name, "timeout": timeout, "ranks": ranks}))
        said = output.read()
    if answer is None:
        raise TimeoutError(f"{module} {' '.join(argv)} took more than {timeout} s and said:\n{said[-4000:]}")
    return subprocess.CompletedProcess([module, *argv], answer, said)


def _start(environment: Mapping[str, str]) -> subprocess.Popen[str]:
    found = [str(Path(__file__).resolve().parents[1]), environment.get("PYTHONPATH")]
    own = {**environment, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, found))}
    words = [sys.executable, "-m", "tests.forked_runs"]
    return subprocess.Popen(words, env=own, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True)


def _ask(line: str) -> int | None:
    """The status of a run; None if it took too long."""
    stdin, stdout = _server[0].stdin, _server[0].stdout
    assert stdin is not None and stdout is not None
    stdin.write(line + "\n")
    stdin.flush()
    answer = stdout.readline()
    assert answer, "the process that runs are forked from has ended"
    return json.loads(answer)


def _stop() -> None:
    for server in _server:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def serve() -> None:
    """Import everything, and run what is asked for, one after the other, until standard input ends."""
    import megatron_patch.cli.convert
    import megatron_patch.cli.session
    import megatron_patch.data.finetune
    import megatron_patch.data.indexed_pretrain
    import megatron_patch.data.json_pretrain
    import megatron_patch.evaluate.scoring
    import megatron_patch.generate.batch
    import megatron_patch.launch  # noqa: F401

    for line in sys.stdin:
        asked = json.loads(line)
        child = _fork(lambda: _be(asked))  # noqa: B023  it is used before the loop goes on
        print(json.dumps(_wait(child, asked["timeout"])), flush=True)


def _fork(act: Callable[[], Any]) -> int:
    """The process in which `act` runs; its status is what Python's would be."""
    if child := os.fork():
        return child
    status = 1
    try:
        act()
        status = 0
    except SystemExit as left:
        if isinstance(left.code, str):
            print(left.code, file=sys.stderr)
        status = left.code if isinstance(left.code, int) else int(left.code is not None)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _wait(child: int, timeout: float) -> int | None:
    until = time.monotonic() + timeout
    while time.monotonic() < until:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def _be(asked: Mapping[str, Any]) -> None:
    """Become the program that was asked for."""
    os.setpgid(0, 0)  # what it starts is killed with it
    output = os.open(asked["output"], os.O_WRONLY | os.O_APPEND)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for there, here in ((nothing, 0), (output, 1), (output, 2)):
        os.dup2(there, here)
    sys.stdin = os.fdopen(0, closefd=False)
    os.chdir(asked["cwd"])
    _take(asked["environment"])
    if not os.environ.get("PYTHONWARNINGS"):
        warnings.filters.remove(_QUIET)  # type: ignore[attr-defined]
    if asked["ranks"]:
        _be_ranks(asked["ranks"], free_port(), os.environ, lambda: _script(asked["module"], asked["argv"]))
    os.execve = _ranks_instead_of_torchrun  # type: ignore[assignment]
    _main(asked["module"], asked["argv"])


def _take(environment: Mapping[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)


def _main(module: str, argv: list[str]) -> NoReturn:
    sys.argv = [module, *argv]
    sys.exit(importlib.import_module(module).main(argv))


def _script(module: str, argv: list[str]) -> None:
    sys.argv = [module, *argv]
    runpy.run_module(module, run_name="__main__")


def _ranks_instead_of_torchrun(path: str, command: list[str], environment: Mapping[str, str]) -> NoReturn:
    """What torchrun does on one node with this command; another command, of one process, is run as it is."""
    if command[2] != "megatron_patch.torchrun":
        _take(environment)
        _main(command[2], command[3:])
    module = command.index("-m", command.index("-m") + 1) + 1
    options = dict(word[2:].split("=", 1) for word in command[: module - 1] if word.startswith("--"))
    assert options["nnodes"] == "1", command
    assert options["master-addr"] in ("127.0.0.1", "localhost"), command
    port = int(options["master-port"])
    _be_ranks(int(options["nproc-per-node"]), port, environment, lambda: _main(command[module], command[module + 1 :]))


def _be_ranks(count: int, port: int, environment: Mapping[str, str], act: Callable[[], None]) -> NoReturn:
    """Start `count` ranks that `act`, and end with the status of the first that fails."""
    common = {**environment, "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "PYTHONUNBUFFERED": "1"}
    common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}

    def be_rank(rank: int) -> None:
        _take({**common, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        act()

    ranks = {_fork(lambda rank=rank: be_rank(rank)): rank for rank in range(count)}  # type: ignore[misc]
    sys.exit(_first_failure(ranks))


def _first_failure(ranks: dict[int, int]) -> int:
    """Wait for all; the status of the rank that failed first, 0 if none did. After it the others have some seconds."""
    failed, until = 0, float("inf")
    while ranks:
        for rank in list(ranks):
            ended, status = os.waitpid(rank, os.WNOHANG)
            if not ended:
                continue
            del ranks[rank]
            if (code := os.waitstatus_to_exitcode(status)) and not failed:
                failed, until = code if code > 0 else 128 - code, time.monotonic() + _GRACE
        if time.monotonic() > until:
            for rank in ranks:
                os.kill(rank, signal.SIGKILL)
        time.sleep(0.01)
    return failed


if __name__ == "__main__":
    serve()
