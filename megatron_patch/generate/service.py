"""The engine in a thread of its own, for callers that come at any time: requests in, their tokens out as they are
found.

With several processes the first one takes requests, and tells the others before each pass which are new and which are
no longer wanted. So all run the same engine over the same requests in the same order.
"""

from __future__ import annotations

import json
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from megatron_patch.generate.continuous_batching import Engine, NewToken, Request
from megatron_patch.generate.sampling import Sampling

# Seconds that an idle engine waits for a request before it looks whether it is to stop.
_IDLE = 0.05

Listener = Callable[[NewToken], None]


@dataclass(frozen=True)
class _Order:
    """What the first process says before a pass."""

    new: tuple[Request, ...] = ()
    cancelled: tuple[int, ...] = ()
    stop: bool = False

    def as_text(self) -> str:
        return json.dumps({"new": [_plain(one) for one in self.new], "cancelled": self.cancelled, "stop": self.stop})

    @classmethod
    def from_text(cls, text: str) -> _Order:
        plain = json.loads(text)
        return cls(tuple(map(_request, plain["new"])), tuple(plain["cancelled"]), plain["stop"])


def _plain(request: Request) -> dict[str, Any]:
    return {**asdict(request), "ends": sorted(request.ends)}


def _request(plain: dict[str, Any]) -> Request:
    sampling = Sampling(**plain["sampling"])
    whole = {"prompt": tuple(plain["prompt"]), "ends": frozenset(plain["ends"]), "sampling": sampling}
    return Request(**{**plain, **whole})


class Service:
    """The first process's side: any thread may `submit` and `cancel`; `run` is the engine's own loop.

    Args:
        longest_queue: requests that may wait for a place.
    """

    def __init__(self, engine: Engine, longest_queue: int) -> None:
        engine.fails_alone = True
        self._engine, self._longest_queue = engine, longest_queue
        self._new: queue.SimpleQueue[Request] = queue.SimpleQueue()
        self._cancelled: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._listeners: dict[int, Listener] = {}
        self._lock = threading.Lock()
        self._next = 0
        self._stopping = threading.Event()
        self._failure: BaseException | None = None

    @property
    def failure(self) -> BaseException | None:
        """What ended the loop, if it did not end as asked."""
        return self._failure

    def submit(self, request: Request, listener: Listener) -> int | None:
        """Ask for an answer, whose tokens go to `listener` in the engine's thread.

        Returns:
            The request's number, for `cancel`; None where too many wait, or the engine has stopped.
        """
        with self._lock:
            if self._stopping.is_set() or len(self._listeners) >= self._engine.slots + self._longest_queue:
                return None
            number, self._next = self._next, self._next + 1
            self._listeners[number] = listener
        self._new.put(replace(request, number=number))
        return number

    def cancel(self, number: int) -> None:
        """Nobody waits for this answer any more; nothing where it is complete."""
        with self._lock:
            known = self._listeners.pop(number, None)
        if known is not None:
            self._cancelled.put(number)

    def stop(self) -> None:
        """End the loop after the pass that runs."""
        self._stopping.set()

    def run(self) -> None:
        """Answer until `stop`. What goes wrong ends the loop and stands in `failure`, for another thread to raise."""
        try:
            while self._pass():
                pass
        except BaseException as error:
            self._failure = error
        finally:
            self._stopping.set()

    def _pass(self) -> bool:
        # What is cancelled was asked for before, so whoever looks for new requests last finds those too.
        cancelled = _drained(self._cancelled)
        order = _Order(_drained(self._new), cancelled, self._stopping.is_set())
        if not (order.new or order.cancelled or order.stop) and self._engine.is_idle:
            time.sleep(_IDLE)
            if self._engine.decoder.ranks.replica_group is None:
                return True
        self._engine.decoder.ranks.from_first(order.as_text())
        for new in _follow(self._engine, order):
            with self._lock:
                listener = self._listeners.get(new.number)
                if new.finished:
                    self._listeners.pop(new.number, None)
            if listener is not None:
                listener(new)
        return not order.stop


def serve_along(engine: Engine) -> None:
    """Another process's side of a service: do what the first one says, until it stops."""
    engine.fails_alone = True
    while (text := engine.decoder.ranks.from_first(None)) is not None:
        order = _Order.from_text(text)
        _follow(engine, order)
        if order.stop:
            return


def _follow(engine: Engine, order: _Order) -> list[NewToken]:
    for request in order.new:
        engine.submit(request)
    for number in order.cancelled:
        engine.cancel(number)
    return [] if order.stop else engine.step()


def _drained(waiting: queue.SimpleQueue) -> tuple:
    found = []
    while True:
        try:
            found.append(waiting.get_nowait())
        except queue.Empty:
            return tuple(found)
