"""Who may ask the HTTP interface, and what a refused request is told.

A web page in the user's browser reaches whatever listens on the user's machine. It can send a request to 127.0.0.1
without asking first (`fetch` with mode no-cors), unless the body is of a kind for which browsers ask first: JSON. And
once the name of its own server leads to 127.0.0.1 (DNS rebinding), it also reads the answers; then `Host` has that
name. A page does not know the key. So where there is one, names need not be looked at.
"""

from __future__ import annotations

import hmac
import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

JSON = "application/json"


class RefusedError(Exception):
    """A request that gets an error instead of an answer."""

    def __init__(self, status: int, message: str, kind: str = "invalid_request_error") -> None:
        super().__init__(message)
        self.status, self.kind = status, kind


@dataclass(frozen=True)
class Guard:
    """What a request must have to be looked at.

    Attributes:
        api_key: that clients must give; empty: none.
        is_local: whether programs of this machine alone are listened to.
    """

    api_key: str
    is_local: bool

    def check(self, headers: Mapping[str, str]) -> None:
        """Look at a request's headers.

        Raises:
            RefusedError: whoever asks may not.
        """
        if self.api_key:
            # Headers are read as Latin-1, whatever bytes they hold.
            given = headers.get("authorization", "").removeprefix("Bearer ").encode("latin-1")
            if not hmac.compare_digest(given, os.fsencode(self.api_key)):
                raise RefusedError(401, "The API key is missing or wrong.", "authentication_error")
            return
        host, origin = headers.get("host", ""), headers.get("origin")
        if self.is_local and not is_this_machine(_place(f"//{host}").hostname):
            raise RefusedError(
                403,
                f"the request is for {host[:100]!r}; without a key this server answers those for localhost and 127.0.0.1. "
                "Start it with --api-key to ask under another name.",
                "permission_error",
            )
        if origin is not None and _place(origin).netloc.lower() != host.lower() and not is_this_machine(_place(origin).hostname):
            raise RefusedError(
                403,
                f"the request comes from a page of {origin[:100]!r}; without a key this server answers no other site's pages. "
                "Start it with --api-key to ask from there.",
                "permission_error",
            )


def check_is_json(headers: Mapping[str, str]) -> None:
    """Look at what a body is said to be.

    Raises:
        RefusedError: something else than JSON.
    """
    kind = headers.get("content-type", "")
    if kind.partition(";")[0].strip().lower() != JSON:
        raise RefusedError(
            415, f"Content-Type is {kind[:100]!r}; it must be {JSON}: write curl -H 'Content-Type: {JSON}' -d …, for example."
        )


def is_this_machine(host: str | None) -> bool:
    """Whether a name or an address always leads to the machine itself."""
    try:
        return host == "localhost" or ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False


def _place(url: str) -> SplitResult:
    """The parts of an address; nothing of a text that is none."""
    try:
        return urlsplit(url)
    except ValueError:
        return urlsplit("")
