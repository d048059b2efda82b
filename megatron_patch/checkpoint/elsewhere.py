"""What a rank reads of a checkpoint whose files lie on disks of other nodes: ranks that have a file send its parts.

All ranks go through one list of transfers in one order. Of two ranks of a transfer both come to it, since both have
done the ones before it, so none waits for ever. A node gets each part once, and hands it on among its ranks.
"""

from __future__ import annotations

import megatron_patch.core.device  # noqa: F401  prepares megatron-core for this machine

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from megatron_patch.core import messages, parallel
from megatron_patch.errors import UserError

Part = tuple  # what names a part of a file, comparable and the same on all ranks; its first item is the file's name


_NOTHING = torch.empty(0, dtype=torch.uint8)  # what is sent where a part cannot be read


@dataclass(frozen=True)
class _Rank:
    """What a rank has and wants."""

    node: int
    files: frozenset[str]
    wants: tuple[Part, ...]


def exchange(
    files: frozenset[str], wants: list[Part], read: Callable[[Part], torch.Tensor], take: Callable[[Part, torch.Tensor], None]
) -> None:  # fmt: skip
    """Get each part that this rank wants, and send those that others want. Every rank calls it.

    Args:
        files: the checkpoint's that are on this rank's node.
        wants: parts of other files.
        read: gives a part of a file that is here: uint8 [bytes] in host memory.
        take: is called with each wanted part and its bytes.

    Raises:
        OnEveryRank: no node has a file, or one cannot be read.
    """
    ranks: list[_Rank] = parallel.from_all_ranks(_Rank(messages.node(), files, tuple(wants)))
    problem: UserError | OSError | None = None
    for place, part in enumerate(sorted({part for one in ranks for part in one.wants})):
        holders = [rank for rank, one in enumerate(ranks) if part[0] in one.files]
        if not holders:
            problem = problem or UserError(f"{part[0]} is on none of the run's nodes; start it on all nodes that wrote it.")
            continue
        data = None
        for sender, receiver in _hops(holders[place % len(holders)], part, ranks):
            try:
                if parallel.rank() == sender and data is None:
                    data = read(part)
            except (UserError, OSError) as error:  # the other rank waits all the same
                problem, data = problem or error, _NOTHING
            if parallel.rank() == sender:
                messages.send(_NOTHING if data is None else data, receiver)
            elif parallel.rank() == receiver:
                data = messages.receive(sender)
                try:
                    if data.numel():
                        take(part, data)
                except (UserError, OSError) as error:
                    problem = problem or error
    parallel.all_or_none(lambda: _raise(problem))


def _hops(holder: int, part: Part, ranks: list[_Rank]) -> Iterator[tuple[int, int]]:
    """(sender, receiver), in order: from the holder to a rank of each node that wants the part, on to the others."""
    firsts: dict[int, int] = {}
    for rank, one in enumerate(ranks):
        if part in one.wants:
            yield firsts.get(one.node, holder), rank
            firsts.setdefault(one.node, rank)


def _raise(problem: UserError | OSError | None) -> None:
    if problem is not None:
        raise problem
