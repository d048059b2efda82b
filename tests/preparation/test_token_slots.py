"""Tokens that workers leave in memory reach the file, in order, and the memory is given back."""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest

from megatron_patch.preparation import token_slots
from megatron_patch.preparation.token_slots import Slot, TokenSlots

_attached: list[TokenSlots] = []


def _start(slots: TokenSlots) -> None:
    _attached.append(slots)


def _put(number: int, tokens: bytes) -> Slot:
    return _attached[0].put(number, tokens)


def test_what_a_worker_puts_is_appended_behind_what_is_there(tmp_path):
    texts = [bytes([number]) * (1000 * number + 1) for number in range(7)]
    with TokenSlots(3) as slots, open(tmp_path / "tokens", "w+b") as file:
        file.write(b"before")
        with ProcessPoolExecutor(1, get_context("spawn"), initializer=_start, initargs=(slots,)) as pool:
            for text in texts:
                slots.append(file, pool.submit(_put, slots.next(), text).result())
    assert (tmp_path / "tokens").read_bytes() == b"before" + b"".join(texts)


def test_a_long_document_s_memory_is_given_back(tmp_path, monkeypatch):
    monkeypatch.setattr(token_slots, "_KEPT", 1 << 20)
    with TokenSlots(2) as slots, open(tmp_path / "tokens", "wb") as file:
        for size in (1 << 20, 9 << 20):
            slots.append(file, slots.put(slots.next(), os.urandom(size)))
        assert os.fstat(slots._descriptor).st_blocks * 512 == 1 << 20


def test_a_full_disk_is_the_system_s_error():
    with TokenSlots(1) as slots, pytest.raises(OSError, match="No space left"), open("/dev/full", "wb") as file:
        slots.append(file, slots.put(0, bytes(1 << 20)))
