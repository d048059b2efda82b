"""Checkpoints on disks of the nodes' own (`--local-output true`): who writes what, and what every node gets.

Each rank's tensors stay on its node. The small files that describe the checkpoint, and the tracker, are on every node.
So each can say what the checkpoint is, and the nodes go on together.
"""

from __future__ import annotations

import megatron_patch.core.device  # noqa: F401  prepares megatron-core for this machine

import socket
from collections.abc import Sequence
from dataclasses import replace

from megatron_patch.checkpoint.finish import Ending
from megatron_patch.config import TrainConfig
from megatron_patch.core import messages, parallel
from megatron_patch.formats.new_metadata import Chunk, Span
from megatron_patch.formats.nodes_file import NODES, NodeFiles, nodes_file


def keeps_folder(config: TrainConfig) -> bool:
    """Whether this rank does what is done once a folder: the first of all, or of each node if each has its own."""
    return parallel.is_first_rank_of_node() if config.options.local_output else parallel.rank() == 0


def on_this_node(ending: Ending, everybodys: Sequence[tuple[list[Chunk], dict[str, Span]]]) -> Ending:
    """`ending` with what this node's disk has, where each has its own. Every rank calls it.

    Args:
        everybodys: what each rank has written.
    """
    if not ending.config.options.local_output:
        return ending
    files: dict[int, set[str]] = {}
    hosts: dict[int, str] = {}
    for (node, host), (chunks, objects) in zip(parallel.from_all_ranks((messages.node(), socket.gethostname())), everybodys):
        spans = (*(chunk.span for chunk in chunks), *objects.values())
        files.setdefault(node, set()).update(span.file for span in spans)
        hosts[node] = host
    listed = nodes_file([NodeFiles(hosts[node], tuple(sorted(files[node]))) for node in sorted(files)])
    own = {name: size for name, size in ending.sizes.items() if name in files[messages.node()]}
    return replace(ending, small={**ending.small, NODES: listed}, sizes=own)
