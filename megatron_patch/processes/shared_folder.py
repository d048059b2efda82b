"""Whether nodes see one another's files: found by a token at the start, not by half a checkpoint at the end.

Imports no torch.
"""

from __future__ import annotations

import contextlib
import socket
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from megatron_patch.errors import UserError
from megatron_patch.processes.meeting import Meeting, Store

_LOOK_FOR = 10.0  # seconds: a shared file system may show a new file that much later


def check(meeting: Meeting, store: Store, folder: Path, data: str, seconds: float = _LOOK_FOR) -> None:
    """Look for the first node's token in `folder`; every node calls it.

    Args:
        folder: OUTPUT_BASEPATH.
        data: this node's fingerprint of the training data; "" if there is none.

    Raises:
        UserError: a node does not see the token, or has other data; every node raises it.
    """
    with _token(meeting, store, folder) as token:
        seen = _wait_for(token, seconds)
        found = meeting.compare(store, "shared", "" if seen else socket.gethostname())
    blind = {node: host for node, host in found.items() if host}
    if blind:
        who = ", ".join(f"node {node} ({host})" for node, host in blind.items())
        raise UserError(
            f"OUTPUT_BASEPATH {folder} is not one folder on all nodes: {who} does not see what node 0 wrote there. A checkpoint "
            "would be torn in pieces: write a folder of a shared file system that every node mounts at the same place."
        )
    kinds = meeting.compare(store, "data", data)
    others = [node for node, kind in kinds.items() if kind != kinds[0]]
    if others:
        who = ", ".join(f"node {node}" for node in others)
        raise UserError(f"the training data is not the same on all nodes: that of {who} has other bytes than that of node 0.")


@contextlib.contextmanager
def _token(meeting: Meeting, store: Store, folder: Path) -> Iterator[Path]:
    """The token's path on this node. The first node makes it, and removes it in the end."""
    if meeting.node:
        yield folder / store.get("token").decode()
        return
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f".seen-by-all-nodes-{uuid.uuid4().hex}"
    path.touch()
    store.set("token", path.name)
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def _wait_for(path: Path, seconds: float) -> bool:
    until = time.monotonic() + seconds
    while not path.exists():
        if time.monotonic() > until:
            return False
        with contextlib.suppress(OSError):
            next(path.parent.iterdir(), None)  # NFS asks its server anew when a folder is listed
        time.sleep(0.2)
    return True
