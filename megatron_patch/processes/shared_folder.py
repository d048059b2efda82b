"""Whether nodes see one another's files: found by a token at the start, not by half a checkpoint at the end.

Imports no torch.
"""

from __future__ import annotations

import contextlib
import json
import socket
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from megatron_patch.errors import UserError, refusal
from megatron_patch.processes.meeting import Meeting, Store

_LOOK_FOR = 10.0  # seconds: a shared file system may show a new file that much later
_LOOK_FOR_OTHERS = 2.0  # seconds for what is not meant to be there


def check(meeting: Meeting, store: Store, folder: Path, seconds: float = _LOOK_FOR) -> None:
    """Look for the first node's token in `folder`, OUTPUT_BASEPATH; every node calls it.

    Raises:
        UserError: a node does not see the token; every node raises it.
    """
    with _token(meeting, store, folder) as tokens:
        seen = _wait_for([tokens[0]], seconds)
        found = meeting.compare(store, "shared", "" if seen else socket.gethostname())
    blind = {node: host for node, host in found.items() if host}
    if blind:
        who = ", ".join(f"node {node} ({host})" for node, host in blind.items())
        raise UserError(
            f"OUTPUT_BASEPATH {folder} is not one folder on all nodes: {who} does not see what node 0 wrote there. A checkpoint "
            "would be torn in pieces: write a folder of a shared file system that every node mounts at the same place, or add "
            "--local-output true, with which each node keeps its own files."
        )


def check_apart(meeting: Meeting, store: Store, folder: Path, seconds: float = _LOOK_FOR_OTHERS) -> None:
    """Look whether another node's token is in `folder`, which is to be this node's own; every node calls it.

    Raises:
        UserError: a node sees one; every node raises it.
    """
    with _token(meeting, store, folder) as tokens:
        others = [path for node, path in tokens.items() if node != meeting.node]
        seen = _wait_for(others, seconds)
        found = meeting.compare(store, "apart", socket.gethostname() if seen else "")
    sharing = ", ".join(f"node {node} ({host})" for node, host in found.items() if host)
    if sharing:
        raise UserError(
            f"--local-output true: OUTPUT_BASEPATH {folder} is no folder of each node's own, since {sharing} sees there what "
            "another node wrote. Leave the flag out: on a shared disk all nodes write one folder."
        )


def check_inputs(meeting: Meeting, store: Store, inputs: Mapping[str, str]) -> None:
    """Compare what this node reads with what all nodes do.

    Args:
        inputs: a fingerprint of the files by the name of the argument, "" if they cannot be read. What only some nodes
            read, since they start from other checkpoints, is judged later.

    Raises:
        UserError: a node has others; every node raises it.
    """
    told = {node: json.loads(text) for node, text in meeting.compare(store, "inputs", json.dumps(inputs)).items()}
    wrong = []
    for name in [name for name in told[0] if all(name in one for one in told.values())]:
        if others := [node for node, one in told.items() if one[name] != told[0][name]]:
            who = ", ".join(f"node {node}" for node in others)
            wrong.append(f"{name} is not the same on all nodes: {who} has other bytes there than node 0.")
    if wrong:
        raise UserError(" ".join(wrong))


@contextlib.contextmanager
def _token(meeting: Meeting, store: Store, folder: Path) -> Iterator[dict[int, Path]]:
    """The path of each node's token, by the node's number. Each makes its own, and removes it in the end.

    Raises:
        UserError: the operating system refuses one; every node raises it.
    """
    path, refused = folder / f".seen-by-all-nodes-{uuid.uuid4().hex}", ""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.touch()
    except OSError as error:
        refused = refusal(error)
    try:
        told = meeting.compare(store, "refused", refused)
        if any(told.values()):
            raise UserError("; ".join(f"node {node}: {why}" for node, why in told.items() if why))
        yield {node: folder / name for node, name in meeting.compare(store, "token", path.name).items()}
    finally:
        with contextlib.suppress(OSError):  # it was never there, or the disk has gone: the run will say so
            path.unlink()


def _wait_for(paths: Sequence[Path], seconds: float) -> bool:
    """Whether one of the files came to be seen."""
    until = time.monotonic() + seconds
    while not any(path.exists() for path in paths):
        if time.monotonic() > until:
            return False
        with contextlib.suppress(OSError):
            next(paths[0].parent.iterdir(), None)  # NFS asks its server anew when a folder is listed
        time.sleep(0.2)
    return True
