"""Each rank exchanges whole numbers, whose sums are exact, and compares with what they must be."""

from __future__ import annotations

import megatron_patch.core.device  # noqa: F401

import os

import torch
from torch import distributed

from megatron_patch.core import parallel, peer_memory, tensor_exchange
from tests.tiny import tiny_config

WIDTH, PART = 6, 2


def sequence(seed: int, ranks: int) -> torch.Tensor:
    """[ranks · PART, WIDTH], the same on every rank."""
    return torch.randint(-99, 99, (ranks * PART, WIDTH), generator=torch.Generator().manual_seed(seed)).float()


def rounds(exchange: tensor_exchange.Exchange, rank: int, ranks: int, seed: int) -> None:
    mine = slice(rank * PART, (rank + 1) * PART)
    whole = sequence(seed, ranks)
    seen = torch.full_like(whole, torch.nan)

    def use(rows: slice, values: torch.Tensor) -> None:
        assert seen[rows].isnan().all(), "rows come once"
        seen[rows] = values

    kept = exchange.gather(whole[mine].clone(), use, keeps=True)
    assert torch.equal(kept, whole) and torch.equal(seen, whole)

    partial = [sequence(seed + 1 + other, ranks) for other in range(ranks)]  # of each rank
    added = sum(partial)[mine]

    def produce(rows: slice, out: torch.Tensor) -> None:
        out.copy_(partial[rank][rows])

    for depth in (1, 1 << 20):
        assert torch.equal(exchange.sum(produce, len(whole), WIDTH, like=whole, depth=depth), added)
    # As a backward pass does it: a gather that is waited for after the sums' place was written.
    gathering = exchange.begin_gather(whole[mine].clone())
    room = exchange.room(len(whole), WIDTH, like=whole)
    produce(slice(0, len(whole)), room.own)
    assert torch.equal(gathering.get(), whole)
    assert torch.equal(exchange.begin_sum(room).get(), added)


def main() -> None:
    ranks = int(os.environ["WORLD_SIZE"])
    config = tiny_config(tensor_model_parallel_size=ranks, sequence_parallel=True)
    layout = parallel.start(config)
    group = distributed.group.WORLD
    for copies in (False, True):
        peer_memory.on_cpus = copies
        said = peer_memory.open_groups({"TP": group})
        assert said == ("TP: copy engines" if copies else "TP: NCCL (there is no GPU)"), said
        exchange = tensor_exchange.exchange_of(group)
        assert isinstance(exchange, tensor_exchange.CopyExchange) == copies
        for seed in range(5):  # more than there are places
            rounds(exchange, layout.rank, ranks, 100 * seed)
        tensor_exchange.close()
        peer_memory.close()
    parallel.stop()


if __name__ == "__main__":
    main()
