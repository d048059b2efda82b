"""Checkpoints on disks of the nodes' own (`--local-output true`): who writes what, and what every node gets.

Each rank's tensors stay on its node. The small files that describe the checkpoint, and the tracker, are on every node.
So each can say what the checkpoint is, and the nodes go on together.
"""

from __future__ import annotations

import megatron_patch.core.device  # noqa: F401  prepares megatron-core for this machine

import socket
from pathlib import Path

from megatron_patch.config import TrainConfig
from megatron_patch.core import parallel
from megatron_patch.core.messages import from_first_rank
from megatron_patch.formats.distcp_metadata import COMMON, CORE_METADATA, METADATA
from megatron_patch.formats.nodes_file import NODES, NodeFiles, nodes_file

_SHARED = (METADATA, COMMON, CORE_METADATA)  # what the first rank alone writes with the tensors


def keeps_folder(config: TrainConfig) -> bool:
    """Whether this rank does what is done once a folder: the first of all, or of each node if each has its own."""
    return parallel.is_first_rank_of_node() if config.options.local_output else parallel.rank() == 0


def spread(config: TrainConfig, folder: Path) -> None:
    """Give each node's `folder`, in which its ranks have written, the files that all have. Every rank calls it.

    Raises:
        OnEveryRank: the operating system refuses something on a node.
    """
    if not config.options.local_output:
        return
    first = parallel.rank() == 0
    small = from_first_rank(
        parallel.all_or_none(lambda: {name: (folder / name).read_bytes() for name in _SHARED} if first else None)
    )
    own = sorted(path.name for path in folder.glob("*.distcp")) if keeps_folder(config) else None
    found = parallel.from_all_ranks(None if own is None else NodeFiles(socket.gethostname(), tuple(own)))
    small[NODES] = nodes_file([one for one in found if one is not None])

    def write() -> None:
        for name, content in small.items():
            if not first or name == NODES:
                (folder / name).write_bytes(content)

    parallel.all_or_none(lambda: write() if keeps_folder(config) else None)
