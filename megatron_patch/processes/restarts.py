"""Whether torchrun starts a failed run again, and why not. All nodes decide the same. Imports no torch."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

from megatron_patch.language.sentences import fill
from megatron_patch.processes.meeting import Store

_USERS_ERROR = 2  # the status after a sentence about what the user can mend
_ANSWER = 20.0  # seconds that other nodes get to tell of their failure


@dataclass(frozen=True)
class Failure:
    """How a node's ranks ended.

    Attributes:
        iteration: the last that was done since the last start; 0 before the first; None if it is not known.
        hopeless: starting again would end in the same way.
    """

    iteration: int | None
    hopeless: bool


def failure_of(iteration: int | None, codes: list[int | None], final: bool | None) -> Failure:
    """From the ranks' statuses, and from what a rank has said of a restart (`notes.is_final`).

    A status alone does not tell: a run that cannot go on ends with 1 as a crash does, and a disk that fails for a while
    with 2 as a usage error does.
    """
    return Failure(iteration, _USERS_ERROR in codes if final is None else final)


class Restarts:
    """The failures of a run so far, on this node.

    Args:
        node, nodes: this node's number and how many there are.
    """

    def __init__(self, node: int, nodes: int) -> None:
        self._node, self._nodes = node, nodes
        self._places: set[int] = set()  # the last iteration behind which it failed; 0 too if it failed before one since

    def refusal(
        self, here: Failure, attempt: int, store: Store | None, sleep: Callable[[float], None] = time.sleep
    ) -> str | None:
        """Why the run is not started again, as a line; None if it is. An empty line where a rank has said it.

        Args:
            here: this node's failure.
            attempt: how often the run was started before.
            store: which all nodes reach; None for a node alone.
        """
        failures = self._all(here, attempt, store, sleep) if store is not None and self._nodes > 1 else {self._node: here}
        missing = [node for node in range(self._nodes) if self._nodes > 1 and node not in failures]
        if missing:
            return fill("node {} has told nothing of its end, so the run is not started again.", ", ".join(map(str, missing)))
        if any(one.hopeless for one in failures.values()):
            return ""
        known = [one.iteration for one in failures.values() if one.iteration is not None]
        return self._repeated(max(known)) if known else None

    def _repeated(self, iteration: int) -> str | None:
        """A line if the run has failed at that place before."""
        if iteration in self._places:
            behind = (
                "the run has failed twice behind iteration {}, so it is not started again: what is said above repeats itself."
            )
            before = (
                "the run has failed twice before an iteration was done, so it is not started again: what is said above repeats "
                "itself."
            )
            return fill(behind, iteration) if iteration else fill(before)
        # A failure before the first iteration says nothing of the one where the run failed before.
        self._places = {iteration} if iteration else self._places | {0}
        return None

    def _all(self, here: Failure, attempt: int, store: Store, sleep: Callable[[float], None]) -> dict[int, Failure]:
        """Every node's failure, as far as told in time."""
        store.set(f"failed/{attempt}/{self._node}", json.dumps(asdict(here)))
        self.tell(attempt, store)
        found: dict[int, Failure] = {}
        for _ in range(int(_ANSWER * 5)):
            for node in set(range(self._nodes)) - set(found):
                if store.check([f"failed/{attempt}/{node}"]):
                    found[node] = Failure(**json.loads(store.get(f"failed/{attempt}/{node}")))
            if len(found) == self._nodes:
                break
            sleep(0.2)
        return found

    def tell(self, attempt: int, store: Store) -> None:
        """Tell other nodes that the run has failed here."""
        store.set(f"failed/{attempt}", "yes")

    def elsewhere(self, attempt: int, store: Store) -> bool:
        """Whether another node has told that the run failed, so that this one's ranks wait in vain."""
        return store.check([f"failed/{attempt}"])
