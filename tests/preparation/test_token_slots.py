"""Tokens that workers leave in memory come out whole, and the memory is given back."""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from megatron_patch.preparation import token_slots
from megatron_patch.preparation.token_slots import Slot, TokenSlots

_attached: list[TokenSlots] = []


def _start(slots: TokenSlots) -> None:
    _attached.append(slots)


def _put(number: int, tokens: bytes) -> Slot | bytes:
    return _attached[0].put(number, tokens)


def test_what_workers_put_comes_whole_and_in_turn():
    texts = [bytes([number]) * (1000 * number + 1) for number in range(7)]
    with TokenSlots(3) as slots:
        with ProcessPoolExecutor(2, get_context("spawn"), initializer=_start, initargs=(slots,)) as pool:
            found = [pool.submit(_put, slots.next(), text) for text in texts[:3]]
            for number, text in enumerate(texts):
                with slots.taken(found[number].result()) as tokens:
                    assert bytes(tokens) == text
                found += [pool.submit(_put, slots.next(), later) for later in texts[number + 3 : number + 4]]


def test_what_no_place_holds_is_handed_over_as_it_is(monkeypatch):
    monkeypatch.setattr(token_slots, "_APART", 1 << 12)
    with TokenSlots(2) as slots:
        short, long = b"a" * (1 << 12), b"b" * ((1 << 12) + 1)
        found = [slots.put(slots.next(), short), slots.put(slots.next(), long)]
        with slots.taken(found[0]) as first, slots.taken(found[1]) as second:
            assert (bytes(first), second) == (short, long)


def test_a_long_document_s_memory_is_given_back(monkeypatch):
    monkeypatch.setattr(token_slots, "_KEPT", 1 << 20)
    with TokenSlots(2) as slots:
        for size in (1 << 20, 9 << 20):
            with slots.taken(slots.put(slots.next(), os.urandom(size))):
                pass
        assert os.fstat(slots._descriptor).st_blocks * 512 == 1 << 20
