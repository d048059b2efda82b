"""Connections of the web server: not too many, and none waits for ever for a request that does not come.

uvicorn itself looks at the time only between a response and the next request. So clients that send nothing, or a byte a
minute, would use up the process's descriptors before anyone asks for the key.
"""

from __future__ import annotations

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol


class Connection(H11Protocol):
    """One connection.

    Attributes:
        patience: seconds in which a request must have come whole, its body too.
    """

    patience = 60.0
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has come."""
        super().connection_made(transport)
        # From limit_concurrency on uvicorn answers requests with status 503, but keeps connections without one.
        if self.limit_concurrency is not None and len(self.connections) > 2 * self.limit_concurrency:
            transport.abort()
        self._look()

    def data_received(self, data: bytes) -> None:
        """Some of a request."""
        super().data_received(data)
        self._look()

    def on_response_complete(self) -> None:
        """The request is answered."""
        super().on_response_complete()
        self._look()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone."""
        super().connection_lost(exc)
        self._stop()

    def _look(self) -> None:
        """Let the time run while a request is to come, from its beginning to its end."""
        if self.conn.their_state not in (h11.IDLE, h11.SEND_BODY) or self.transport.is_closing():
            self._stop()
        elif self._timer is None:
            self._timer = self.loop.call_later(self.patience, self.transport.abort)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
