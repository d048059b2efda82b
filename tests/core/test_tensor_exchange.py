"""Tensor-parallel ranks gather parts and sum results, through collectives and through each other's memory."""

from __future__ import annotations

import megatron_patch.core.device  # noqa: F401

import weakref

import pytest
import torch

from megatron_patch.core import tensor_exchange
from tests.launching import run_ranks


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_each_rank_gets_what_it_must(ranks):
    run_ranks("tests.core.exchange_worker", count=ranks)


class OneOfTwo:
    """Stands for `Peers`: rank 0 of two, whose neighbour's memory is its own."""

    rank, size = 0, 2

    def meet(self, place=0):
        pass

    def views(self, tensor):
        return [tensor, tensor]

    def others(self, ranks):
        return [rank for rank in ranks if rank != self.rank]


@pytest.mark.parametrize("what", ["gather", "sum"])
def test_what_is_read_beside_the_next_products_is_held_until_then(monkeypatch, what):
    """On a GPU the next product would otherwise get the memory, and write it while another stream reads it."""
    exchange, held, like = tensor_exchange.CopyExchange(OneOfTwo()), [], torch.ones(4, 6)
    real_parts = exchange._parts

    def parts(target, *rest):
        held.append(weakref.ref(target.untyped_storage()))
        real_parts(target, *rest)

    monkeypatch.setattr(exchange, "_parts", parts)
    if what == "sum":
        arriving = exchange.begin_sum(exchange.room(4, 6, like))
    else:
        part = torch.ones(2, 6)
        arriving = exchange.begin_gather(part)
        held.append(weakref.ref(part))
        del part
    assert held and all(one() is not None for one in held)
    arriving.get()
    del arriving
    assert not any(one() is not None for one in held)
