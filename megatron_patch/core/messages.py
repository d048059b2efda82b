"""What ranks send to each other in host memory, between two steps."""

from __future__ import annotations

import megatron_patch.core.device  # noqa: F401  prepares megatron-core for this machine

import os
from pathlib import Path
from typing import Any

import torch

from megatron_patch.core import parallel
from megatron_patch.errors import naming

_PIECE = 64 << 20  # bytes of a file that are sent at a time


def node() -> int:
    """The number of this process's node, from 0, as torchrun says it."""
    return int(os.environ.get("GROUP_RANK", "0"))


def from_first_rank(here: Any) -> Any:
    """The first rank's object; all ranks call it. Objects travel pickled, among the processes of this run alone."""
    if not torch.distributed.is_initialized():
        return here
    box = [here]
    torch.distributed.broadcast_object_list(box, src=0, group=parallel.host_group())
    return box[0]


def send(data: torch.Tensor, receiver: int) -> None:
    """Send uint8 [bytes] in host memory to another rank, which calls `receive`."""
    torch.distributed.send(torch.tensor([data.numel()]), receiver, group=parallel.host_group())
    if data.numel():
        torch.distributed.send(data, receiver, group=parallel.host_group())


def receive(sender: int) -> torch.Tensor:
    """What a rank sends to this one: uint8 [bytes] in host memory."""
    size = torch.zeros(1, dtype=torch.int64)
    torch.distributed.recv(size, sender, group=parallel.host_group())
    data = torch.empty(int(size), dtype=torch.uint8)
    if data.numel():
        torch.distributed.recv(data, sender, group=parallel.host_group())
    return data


def copy_to_other_nodes(folder: Path) -> None:
    """Copy the files that the first rank's node has in `folder` to the same folder of the other nodes' own disks.

    Those of the same size that a node has already are left out. Every rank calls it.

    Raises:
        OnEveryRank: the operating system refuses something.
    """
    keeps = parallel.is_first_rank_of_node()
    there = parallel.all_or_none(lambda: _sizes(folder) if keeps else {})
    wanted: dict[str, int] = from_first_rank(there)
    own = {name for name, size in wanted.items() if keeps and there.get(name) != size}
    for name in sorted(set().union(*parallel.from_all_ranks(own))):
        for begin in range(0, max(1, wanted[name]), _PIECE):
            _copy(folder / name, begin, writes=keeps and parallel.rank() != 0)


def _copy(path: Path, begin: int, writes: bool) -> None:
    first = parallel.rank() == 0
    piece = from_first_rank(parallel.all_or_none(lambda: _read(path, begin) if first else b""))
    parallel.all_or_none(lambda: _write(path, begin, piece) if writes else None)


def _sizes(folder: Path) -> dict[str, int]:
    folder.mkdir(parents=True, exist_ok=True)
    return {path.name: path.stat().st_size for path in folder.iterdir() if path.is_file()}


def _read(path: Path, begin: int) -> bytes:
    with naming(path), open(path, "rb") as stream:
        stream.seek(begin)
        return stream.read(_PIECE)


def _write(path: Path, begin: int, piece: bytes) -> None:
    with naming(path), open(path, "r+b" if begin else "wb") as stream:
        stream.seek(begin)
        stream.write(piece)
