"""Two ranks sum and gather in a graph, while the memory that is free is written again and again."""

from __future__ import annotations

import megatron_patch.core.device as device

from collections.abc import Callable

import torch
from torch import distributed

from megatron_patch.core import parallel, peer_memory, tensor_exchange
from megatron_patch.core.tensor_exchange import Exchange
from megatron_patch.train.graphs import record
from tests.tiny import tiny_config

ROWS, WIDTH = 4096, 8192  # a pass of LLaMA-2 70B: copies of a tenth of a millisecond


def filled(rows: int, value: float) -> torch.Tensor:
    return torch.full((rows, WIDTH), value, dtype=torch.bfloat16, device=device.local_device())


def beside() -> list[torch.Tensor]:
    """What a backward pass makes while its sums are under way: tensors of the parts' size, written for long."""
    made = [filled(ROWS // 2, torch.nan) for _ in range(4)]
    for _ in range(20):
        for one in made:
            one.fill_(torch.nan)
    return made


def summed(exchange: Exchange, rank: int) -> torch.Tensor:
    room = exchange.room(ROWS, WIDTH, filled(0, 0.0))
    room.own.fill_(1.0 + rank)
    arriving = exchange.begin_sum(room)
    made = beside()
    found = arriving.get()
    del made
    return found - 3.0  # 1 of one rank and 2 of the other


def gathered(exchange: Exchange, rank: int) -> torch.Tensor:
    arriving = exchange.begin_gather(filled(ROWS // 2, 1.0 + rank))
    made = beside()
    found = arriving.get()
    del made
    return found.view(2, -1, WIDTH) - torch.arange(1.0, 3.0, dtype=torch.bfloat16, device=found.device)[:, None, None]


def main() -> None:
    layout = parallel.start(tiny_config(tensor_model_parallel_size=2, sequence_parallel=True))
    said = peer_memory.open_groups({"TP": distributed.group.WORLD})
    assert said == "TP: copy engines", said
    exchange = tensor_exchange.exchange_of(distributed.group.WORLD)
    work: Callable[[Exchange, int], torch.Tensor]
    for work in (summed, gathered):

        def one_pass(work: Callable[[Exchange, int], torch.Tensor] = work) -> torch.Tensor:
            tensor_exchange.begin_pass()
            return work(exchange, layout.rank)

        one_pass()  # the places are made in a pass that is launched
        graph, off = record(one_pass, None)
        for _ in range(3):
            graph.replay()
            torch.cuda.synchronize()
            assert not off.any(), f"{work.__name__}: off by {off.abs().max()}"
        del graph
    tensor_exchange.close()
    peer_memory.close()
    parallel.stop()


if __name__ == "__main__":
    main()
