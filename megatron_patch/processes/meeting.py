"""How the nodes of a job find each other: who is waited for is said, and not for ever. Imports no torch.

The first node listens at MASTER_ADDR:MASTER_PORT, the others come there. torch waits for that without a word.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from typing import Protocol

from megatron_patch.errors import UserError

SAY_EVERY = 30.0  # seconds between two lines
_LOOK_EVERY = 0.5
_ANSWER = 5.0  # seconds for a connection to be answered


class Store(Protocol):
    """What is used of torch's TCPStore, which the first node holds."""

    def set(self, key: str, value: str) -> None:
        """Write a value."""

    def get(self, key: str) -> bytes:
        """Read it; waits until it is there."""

    def check(self, keys: list[str]) -> bool:
        """Whether all are there."""

    def add(self, key: str, amount: int) -> int:
        """Add to a number, and return the sum."""


class Meeting:
    """One node's part in it.

    Args:
        node, nodes: its number, and how many there are.
        address, port: of the first node.
        minutes: `--rendezvous-timeout-minutes`.
        tell: gets a line every 30 s while somebody is missing.
        clock, sleep: Python's.
    """

    def __init__(
        self, node: int, nodes: int, address: str, port: int, minutes: float, tell: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep,
    ) -> None:  # fmt: skip
        self.node, self.nodes, self.address, self.port, self.minutes = node, nodes, address, port, minutes
        self._tell, self._clock, self._sleep = tell, clock, sleep
        self._began = self._said = clock()

    def reach(self, attempt: Callable[[], str]) -> None:
        """Wait until the first node can be reached, or its name resolved.

        Args:
            attempt: tries it; returns why it is not possible yet, "" if it is.

        Raises:
            UserError: not in time.
        """
        while why := attempt():
            waited = self._clock() - self._began
            if waited > self.minutes * 60:
                raise UserError(
                    f"node {self.node} of {self.nodes} could not reach node 0 at {self.address}:{self.port} within "
                    f"{self.minutes:g} min (--rendezvous-timeout-minutes): {why}. Look whether node 0 runs, and whether "
                    "MASTER_ADDR and MASTER_PORT are the same on all nodes."
                )
            self._now_and_then(
                f"node {self.node} of {self.nodes} waits for node 0 at {self.address}:{self.port}; for {waited:.0f} s: {why}."
            )
            self._sleep(_LOOK_EVERY)

    def gather(self, store: Store) -> None:
        """Wait until all nodes have come.

        Raises:
            UserError: not in time; or the nodes' numbers contradict each other.
        """
        if store.add(f"node/{self.node}", 1) > 1:
            raise UserError(f"two nodes say that they are number {self.node} (RANK); each needs a number of its own.")
        if self.node == 0:
            store.set("nodes", str(self.nodes))
        theirs = int(store.get("nodes"))
        if theirs != self.nodes:
            raise UserError(f"node {self.node} was told of {self.nodes} nodes (WORLD_SIZE), and node 0 of {theirs}.")
        while missing := [node for node in range(self.nodes) if not store.check([f"node/{node}"])]:
            waited = self._clock() - self._began
            if waited > self.minutes * 60:
                raise UserError(
                    f"{_nodes(missing)} did not come to {self.address}:{self.port} within {self.minutes:g} min "
                    "(--rendezvous-timeout-minutes). Look whether they run, and whether MASTER_ADDR, MASTER_PORT and WORLD_SIZE "
                    "are the same on all nodes."
                )
            has = "has" if len(missing) == 1 else "have"
            self._now_and_then(
                f"node {self.node} of {self.nodes} waits on {self.address}:{self.port}; {_nodes(missing)} {has} not come for "
                f"{waited:.0f} s."
            )
            self._sleep(_LOOK_EVERY)

    def compare(self, store: Store, topic: str, finding: str) -> dict[int, str]:
        """Tell all nodes this one's finding about `topic`; returns those of all, by node."""
        store.set(f"{topic}/{self.node}", json.dumps(finding))
        found = {node: json.loads(store.get(f"{topic}/{node}")) for node in range(self.nodes)}
        heard = store.add(f"{topic}/heard", 1)
        until = self._clock() + _ANSWER
        while self.node == 0 and heard < self.nodes and self._clock() < until:  # the store ends with the first node
            self._sleep(0.1)
            heard = store.add(f"{topic}/heard", 0)
        return found

    def _now_and_then(self, line: str) -> None:
        if self._clock() - self._said >= SAY_EVERY:
            self._said = self._clock()
            self._tell(line)


def why_unresolved(address: str) -> str:
    """Why the name has no address now; "" if it has one."""
    try:
        socket.getaddrinfo(address, None)
    except (OSError, UnicodeError) as error:
        return f"the name {address} has no address ({getattr(error, 'strerror', None) or error})"
    return ""


def why_unreached(address: str, port: int) -> str:
    """Why nobody can be spoken to at that address now; "" if somebody listens."""
    if why := why_unresolved(address):
        return why
    try:
        socket.create_connection((address, port), timeout=_ANSWER).close()
    except TimeoutError:
        return "no answer"
    except OSError as error:
        return str(error.strerror or error)
    return ""


def _nodes(numbers: list[int]) -> str:
    return f"node {numbers[0]}" if len(numbers) == 1 else f"nodes {', '.join(map(str, numbers))}"
