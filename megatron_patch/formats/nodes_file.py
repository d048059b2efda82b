"""Which node keeps which file of a checkpoint, where nodes share no disk (`--local-output true`). Imports no torch.

`nodes.json` is the same on every node. A folder into which the files of all nodes were copied is a checkpoint like any
other.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_patch.errors import UserError
from megatron_patch.formats.json_files import json_object, one_line

NODES = "nodes.json"
_FORMAT = 1
_MOST_NODES = 100_000
_MOST_LISTED = 2000  # characters of a sentence's list of files


@dataclass(frozen=True)
class NodeFiles:
    """One node's part of a checkpoint: its host's name, and the names of the files that it keeps."""

    host: str
    files: tuple[str, ...]


def nodes_file(nodes: Sequence[NodeFiles]) -> bytes:
    """The content of nodes.json."""
    listed = [{"host": node.host, "files": list(node.files)} for node in nodes]
    return (json.dumps({"format": _FORMAT, "nodes": listed}, indent=1) + "\n").encode()


def read_nodes(folder: Path) -> tuple[NodeFiles, ...]:
    """What nodes.json says; nothing where there is none, as for a checkpoint that all nodes wrote into one folder.

    Raises:
        UserError: it is not what a training run writes there.
    """
    path = folder / NODES
    if not path.is_file():
        return ()
    nodes = json_object(path).get("nodes")
    if not isinstance(nodes, list) or not 0 < len(nodes) <= _MOST_NODES or not all(map(_is_node, nodes)):
        raise UserError(f"{path} does not say which node keeps which file; copy it again.")
    return tuple(NodeFiles(node["host"], tuple(node["files"])) for node in nodes)


def _is_node(value: object) -> bool:
    if not isinstance(value, dict) or not isinstance(value.get("host"), str):
        return False
    files = value.get("files")
    return isinstance(files, list) and all(isinstance(name, str) and Path(name).name == name for name in files)


def is_file(path: Path) -> bool:
    """Whether there is a file.

    Raises:
        OSError: the system cannot say. os.path's `isfile` would take that for no, and a sound file for a missing one.
    """
    try:
        return path.is_file()
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:  # a damaged name
            return False
        raise


def lacking(folder: Path) -> dict[int, list[str]]:
    """Node → its files that are not in `folder`; nodes that lack none are left out.

    Raises:
        UserError: as `read_nodes`.
        OSError: as `is_file`.
    """
    found = {
        number: [name for name in node.files if not is_file(folder / name)]
        for number, node in enumerate(read_nodes(folder))
    }  # fmt: skip
    return {number: names for number, names in found.items() if names}


def lacking_sentence(folder: Path) -> str | None:
    """Which files of which nodes are to be copied into `folder`, as a sentence; None if it has all.

    Raises:
        UserError: as `read_nodes`.
    """
    missing, nodes = lacking(folder), read_nodes(folder)
    if not missing:
        return None
    listed = {number: one_line(", ".join(names), _MOST_LISTED) for number, names in missing.items()}
    parts = [f"node {number} ({one_line(nodes[number].host)}) keeps {names}" for number, names in listed.items()]
    return (
        f"{folder} holds the files of {len(nodes) - len(missing)} of {len(nodes)} nodes, which share no disk (--local-output): "
        f"{'; '.join(parts)}. Copy these from the same folder of those nodes."
    )
