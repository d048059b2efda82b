"""torchrun with changes at the start, after a failure, and at the end.

Before it rendezvous, nodes say whom they wait for, and look whether they share their files. The launcher looks for a
free port seconds before torchrun listens there, and another process may take it meanwhile; then torchrun tries another
one, if nobody has named this one (MASTER_PORT).

SIGTERM, SIGINT and their kin reach training ranks as SIGTERM, once, however many come. The ranks finish their step and
save within `--exit-grace-seconds`; torch before 2.12 has no setting for that. After a failure there is nothing to wait
for: a rank that waits for a dead one cannot save. MAX_RESTARTS says how often torch starts a run again, and
`processes/restarts.py` when that is vain.

torchrun may be killed, so its ranks end with it. It ends with a script that waits for it, keeps the lock of the
checkpoint folder, and ends a rank in which no thread runs any more.

At the end it prints one line instead of a traceback of its own, and ends with the status of the rank that failed. The
ranks have said what happened.
"""

from __future__ import annotations

import signal

if __name__ == "__main__":  # before torch, whose import takes seconds
    from megatron_patch.processes.signals import end_at_once

    end_at_once()

import datetime
import functools
import json
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from torch.distributed import DistNetworkError, DistStoreError, PrefixStore, TCPStore, run
from torch.distributed.elastic.agent.server.api import SimpleElasticAgent
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import api
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from megatron_patch.arguments.command_line import asked_language
from megatron_patch.arguments.processes import free_port
from megatron_patch.errors import UserError, sentence
from megatron_patch.folders.run_lock import BEAT, RunLock, taken
from megatron_patch.language.choice import ask
from megatron_patch.language.sentences import fill, in_language
from megatron_patch.processes import notes, shared_folder
from megatron_patch.processes.again import Again, statuses, unless_stopped
from megatron_patch.processes.caretaker import RANKS_EVERY, Caretaker
from megatron_patch.processes.console import outlive_the_console, tell
from megatron_patch.processes.heartbeats import SilentRanks
from megatron_patch.processes.inherited import GRACE, LOCK, MEETING
from megatron_patch.processes.meeting import Meeting, why_unreached, why_unresolved
from megatron_patch.processes.parents import announce_torchrun

_PORTS = 3  # that are tried before the last one
_AFTER_FAILURE = 5  # seconds that the other ranks get to say why they end as well
_SIGNALS = ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT")


class Stopping:
    """What is done with signals: the first one ends the run, and the others change nothing.

    Args:
        grace: `--exit-grace-seconds` of a training run, from the signal to SIGKILL; None for what has nothing to save.
    """

    def __init__(self, grace: int | None) -> None:
        self.grace = grace
        self.begun = False

    def on_signal(self, number: int, _: object) -> None:
        """Raise torch's exception, which it takes for the request to end, once."""
        if not self.begun:
            self.begun = True
            raise api.SignalException("a signal", sigval=signal.Signals(number))

    def close(self, close: Callable[..., None]) -> Callable[..., None]:
        """`PContext.close` that sends SIGTERM to training ranks, and waits for their save after a user's signal."""

        @functools.wraps(close)
        def wait(context: Any, death_sig: Any = None, timeout: int = 30) -> None:
            patience = (self.grace or timeout) if self.begun else _AFTER_FAILURE
            close(context, death_sig if self.grace is None else signal.SIGTERM, patience)
            if self.begun and self.grace is not None and -signal.SIGKILL in statuses(context):
                template = "what had not ended {} s after the signal (--exit-grace-seconds) was killed."
                tell(fill(template, patience))

        return wait


def main(argv: list[str]) -> int:
    """Run; returns the status of this node's rank that failed first, for a signal 128 and more, as shells do."""
    ask(asked_language(argv))
    stopping = Stopping(int(os.environ[GRACE]) if GRACE in os.environ else None)
    # torch has no settings to use instead.
    api._terminate_process_handler = stopping.on_signal  # type: ignore[assignment]
    api.PContext.close = stopping.close(api.PContext.close)  # type: ignore[method-assign]
    # They tell a rank's end as well, with process ids, and a node's with tracebacks.
    for name in (api.PContext.__module__, LocalElasticAgent.__module__, SimpleElasticAgent.__module__):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    announce_torchrun()
    lock = None
    try:
        lock = _lock()
        notes.find_temporary_folder()
    except (UserError, OSError) as error:
        tell(in_language(sentence(error)))
        if lock is not None:
            lock.release()
        return 2
    with notes.folder():
        caretaker = Caretaker(lock.beat if lock else None, BEAT, SilentRanks(RANKS_EVERY).look)
        caretaker.start()
        try:
            return _status(argv)
        finally:
            stopping.begun = True  # from here on a signal changes nothing
            caretaker.stop()
            if lock is not None:
                lock.release()


def _lock() -> RunLock | None:
    """The lock that the launcher took before it became torchrun; None on a node whose folder another one holds.

    Raises:
        UserError: another run has taken it since, because this one took so long to start.
    """
    path = os.environ.get(LOCK)
    if not path:
        return None
    lock = taken(os.path.dirname(path), path)
    lock.beat()
    return lock


def _status(argv: list[str]) -> int:
    try:
        store = _meet(argv)
        again = Again(_number(argv, "--node-rank"), _number(argv, "--nnodes"), store)
        LocalElasticAgent._restart_workers = again.restart(LocalElasticAgent._restart_workers)  # type: ignore[method-assign]
        LocalElasticAgent._monitor_workers = again.monitor(LocalElasticAgent._monitor_workers)  # type: ignore[method-assign]
        SimpleElasticAgent._exit_barrier = unless_stopped(SimpleElasticAgent._exit_barrier)  # type: ignore[method-assign]
        _run([f"--signals-to-handle={','.join(_heeded())}", *argv])
    except (UserError, OSError) as error:
        tell(in_language(sentence(error)))
        return 2
    except DistNetworkError as error:
        tell(in_language(_no_listener(_value(argv, "--master-addr"), _number(argv, "--master-port"), error)))
        return 1
    except ChildFailedError as error:
        if why := notes.verdict():
            tell(fill("the run was ended: {}", in_language(why)))
            return 1
        rank, failure = error.get_first_failure()
        status = failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode
        template = "rank {} was the first of this node to end early, with status {}; what it said stands above."
        tell(fill(template, rank, status))
        return status
    except api.SignalException as error:
        return _stopped_by(error.sigval)
    number = notes.stopping_signal()  # to a rank, or on another node
    return 0 if number is None else _stopped_by(number)


def _stopped_by(number: signal.Signals) -> int:
    tell(fill("stopped by {}.", number.name))
    return 128 + number


def _number(argv: list[str], flag: str) -> int:
    return int(_value(argv, flag))


def _value(argv: list[str], flag: str) -> str:
    return next(word.partition("=")[2] for word in argv if word.startswith(f"{flag}="))


def _meet(argv: list[str]) -> PrefixStore | None:
    """Wait until all nodes have come, and look whether they share their files; returns what they talk through.

    Raises:
        UserError: a node has not come, or does not see the others' files.
    """
    node, nodes = _number(argv, "--node-rank"), _number(argv, "--nnodes")
    if nodes == 1:
        return None
    told = json.loads(os.environ.get(MEETING, "{}"))
    address, port = _value(argv, "--master-addr"), _number(argv, "--master-port")
    minutes = float(told.get("minutes", 10))
    meeting = Meeting(node, nodes, address, port, minutes, lambda line: print(in_language(line), flush=True))
    meeting.reach((lambda: why_unreached(address, port)) if node else lambda: why_unresolved(address))
    patience = datetime.timedelta(minutes=minutes)
    try:
        # torch's own rendezvous shares this one's listener on the first node.
        store = TCPStore(address, port, is_master=node == 0, wait_for_workers=False, multi_tenant=True, timeout=patience)
    except DistNetworkError as error:
        raise UserError(_no_listener(address, port, error)) from None
    shared = PrefixStore("meeting", store)
    try:
        meeting.gather(shared)
        if "output" in told:
            look = shared_folder.check_apart if told.get("local") else shared_folder.check
            look(meeting, shared, Path(told["output"]))
            shared_folder.check_inputs(meeting, shared, told.get("inputs", {}))
    except (DistNetworkError, DistStoreError) as error:
        raise UserError(
            f"node {node} lost node 0 at {address}:{port} before all nodes had come ({_first_line(error)})."
        ) from None
    return shared


def _no_listener(address: str, port: int, error: Exception) -> str:
    if "EADDRINUSE" in str(error):
        return f"MASTER_PORT {port} is in use by another process of this node: write another one, the same on all nodes."
    return f"node 0 cannot be spoken to at {address}:{port} ({_first_line(error)})."


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:200]


def _heeded() -> list[str]:
    """The signals that end the run: not those that it was started to ignore, as by nohup."""
    return [name for name in _SIGNALS if signal.getsignal(getattr(signal, name)) is not signal.SIG_IGN]


def _run(argv: list[str]) -> None:
    """`run.main`, again with another port where a port that the launcher found was taken before torchrun listened.

    Raises:
        UserError: the port that was named is taken.
    """
    for _ in range(_PORTS + 1):
        try:
            run.main(argv)
            return
        except DistNetworkError as error:
            if "EADDRINUSE" not in str(error):
                raise
            if os.environ.get("MASTER_PORT") or "--nnodes=1" not in argv:
                raise UserError(_no_listener("", _number(argv, "--master-port"), error)) from None
            argv = [f"--master-port={free_port()}" if word.startswith("--master-port=") else word for word in argv]
    raise UserError("None of several free TCP ports stayed free until torchrun listened; set MASTER_PORT to one that is.")


def _leave(status: int) -> NoReturn:
    """End without Python's own end. It would stop a thread that speaks with the store amid C++, which ends the process
    by SIGABRT, whatever became of the run.
    """
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    finally:  # the console may be a file on a full disk
        os._exit(status)


if __name__ == "__main__":
    outlive_the_console()
    _leave(main(sys.argv[1:]))
