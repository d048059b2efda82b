"""How torch's agent starts a failed run again: it asks first, and hears of other nodes' failures. Imports no torch.

torch's errors of a store are RuntimeErrors.
"""

from __future__ import annotations

import contextlib
import functools
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

from megatron_patch.language.sentences import fill
from megatron_patch.processes import notes
from megatron_patch.processes.console import tell
from megatron_patch.processes.meeting import Store
from megatron_patch.processes.restarts import Restarts, failure_of

_A_WORD, _PATIENCE = 3.0, 30.0  # seconds for the store to take a word, and for all nodes to give theirs


class Again:
    """What is done after a failure, here or on another node.

    Args:
        node, nodes: this node's number, and how many there are.
        store: which all nodes reach; None for a node alone.
    """

    def __init__(self, node: int, nodes: int, store: Store | None) -> None:
        self._restarts, self._store = Restarts(node, nodes), store
        self._attempt, self._failed_attempt = 0, -1
        if store is not None:
            threading.Thread(target=self._listen, args=(store,), name="listener", daemon=True).start()

    def _listen(self, store: Store) -> None:
        """Note a failure of another node. Where that node has vanished the store may not answer for minutes, and
        torchrun must hear signals meanwhile: so this is a thread's work."""
        while True:
            time.sleep(1)
            attempt = self._attempt
            try:
                failed = self._restarts.elsewhere(attempt + 1, store)
            except RuntimeError:
                failed = True  # node 0, which holds the store, has ended
            if failed:
                self._failed_attempt = attempt

    def restart(self, restart: Callable[..., None]) -> Callable[..., None]:
        """torch's agent's `_restart_workers`, which starts nothing again where that is vain."""

        @functools.wraps(restart)
        def decided(agent: Any, group: Any) -> None:
            most = group.spec.max_restarts
            attempt = most - agent._remaining_restarts  # the one that begins now
            failure = failure_of(notes.iterations_done(), statuses(agent._pcontext), notes.is_final())
            if notes.stopping_signal() is not None:  # to a rank or another node, and then the save failed
                agent._remaining_restarts = 0
                return
            answer: list[str | None] = [fill("node 0 cannot be reached, so the run is not started again.")]
            _within(_PATIENCE, lambda: answer.__setitem__(0, self._restarts.refusal(failure, attempt, self._store)))
            refusal = answer[0]
            if refusal is None:
                template = (
                    "a process has ended early; the run is started again from its last checkpoint ({} of {}, MAX_RESTARTS)."
                )
                tell(fill(template, attempt, most))
                notes.forget()
                self._attempt = attempt
                restart(agent, group)
                return
            if refusal:
                tell(refusal)
            agent._remaining_restarts = 0  # its loop finds the same failure again, and ends

        return decided

    def monitor(self, monitor: Callable[..., Any]) -> Callable[..., Any]:
        """torch's agent's `_monitor_workers`, which also hears of other nodes' failures: a rank may wait for theirs."""

        @functools.wraps(monitor)
        def listening(agent: Any, group: Any) -> Any:
            # After a signal node 0 may have left with its store, and no node has failed.
            if self._failed_attempt == self._attempt and notes.stopping_signal() is None:
                agent._pcontext.close(signal.SIGTERM)
            result = monitor(agent, group)
            if self._store is not None and result.is_failed():
                store = self._store
                _within(_A_WORD, lambda: self._restarts.tell(self._attempt + 1, store))
            return result

        return listening


def unless_stopped(exit_barrier: Callable[[Any], None]) -> Callable[[Any], None]:
    """torch's agent's `_exit_barrier`, which after a signal waits for nobody.

    The agent of a node that was taken away has not waited either, and never comes: that took five minutes.
    """

    @functools.wraps(exit_barrier)
    def wait(agent: Any) -> None:
        if notes.stopping_signal() is None:
            exit_barrier(agent)

    return wait


def _within(seconds: float, speak: Callable[[], object]) -> None:
    """Speak with the store for so long at most. Where the network is cut it never answers; where node 0 has ended there
    is none."""

    def work() -> None:
        with contextlib.suppress(RuntimeError):
            speak()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)


def statuses(context: Any) -> list[int | None]:
    """The statuses of this node's ranks; None for one that runs."""
    return [handler.proc.poll() for handler in getattr(context, "subprocess_handlers", {}).values()]
