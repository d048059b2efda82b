"""Dropout without a random state: whether an element is kept follows from where it stands in a run, and from a seed.

The function is Philox 4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), as in cuRAND and in
Triton. Its counter is an element's column and position and the number of its sample; its key is the seed and the
number of the layer. So nothing is drawn in an order: a layer that is computed again drops the same, every layout of
processes does, and a run that goes on does. A recorded CUDA graph drops anew at each replay, because it reads the
samples' numbers from memory.

A counter gives four numbers of 32 bits. They belong to four columns that stand 32 apart, so that a kernel's stores are
32 contiguous bytes or more.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ._dispatch import ceil_div, kernel, next_power_of_two, tl, use_triton

_APART = 32  # columns between two of one counter
_GROUP = 4 * _APART
_BITS = 24  # of the 32 that are compared with the rate
_MOST_COUNTERS = 512  # of a program
_MASK = 0xFFFFFFFF


@dataclass(frozen=True)
class Draws:
    """What tells one layer's dropout from every other's.

    Attributes:
        seed: of the run, from 0 to 2³¹ − 1.
        place: number of the layer in the whole model.
        rate: probability with which an element is dropped.
    """

    seed: int
    place: int
    rate: float


def kept(
    length: int, width: int, samples: torch.Tensor, draws: Draws, *, first_column: int = 0, implementation: str | None = None
) -> torch.Tensor:
    """uint8 [S, B, width]: 1 where dropout keeps an element, 0 where it drops it. The host does not wait.

    Args:
        length: S, of the whole sequence.
        width: columns here.
        samples: int64 [B], numbers of the samples in the run.
        first_column: where the columns here begin in those of all tensor-parallel ranks.
    """
    batch, device = len(samples), samples.device
    limit = round(draws.rate * (1 << _BITS))
    if not use_triton(implementation, samples):
        columns = torch.arange(first_column, first_column + width, device=device)
        counters = columns // _GROUP * _APART + columns % _APART
        positions = torch.arange(length, device=device)[:, None, None]
        four = philox((counters, positions, samples[:, None] & _MASK, samples[:, None] >> 32), (draws.seed, draws.place))
        lanes = (columns % _GROUP // _APART).expand(length, batch, width)
        drawn = torch.stack(four).gather(0, lanes[None])[0] >> (32 - _BITS)
        return (drawn >= limit).to(torch.uint8)
    mask = torch.empty(length, batch, width, dtype=torch.uint8, device=device)
    first = first_column // _GROUP * _APART  # counter
    count = ceil_div(first_column + width, _GROUP) * _APART - first
    block = min(_MOST_COUNTERS, next_power_of_two(count))
    if mask.numel():
        _kept_kernel[(length * batch, ceil_div(count, block))](
            mask, samples, draws.seed, draws.place, limit, batch, width, first, first_column, _APART, block, 32 - _BITS
        )
    return mask


def philox(counter: tuple[torch.Tensor, ...], key: tuple[int, int]) -> tuple[torch.Tensor, ...]:
    """Philox 4x32-10 in int64 that hold 32 bits: four tensors that broadcast → four tensors of the broadcast shape."""
    c0, c1, c2, c3 = torch.broadcast_tensors(*counter)
    k0, k1 = key
    for _ in range(10):
        high0, low0 = _wide_product(c0, 0xD2511F53)
        high2, low2 = _wide_product(c2, 0xCD9E8D57)
        c0, c1, c2, c3 = high2 ^ c1 ^ k0, low2, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B9) & _MASK, (k1 + 0xBB67AE85) & _MASK
    return c0, c1, c2, c3


def _wide_product(a: torch.Tensor, factor: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(high, low) 32 bits of a product of two numbers of 32 bits. int64 wraps around, which loses no bit of it."""
    product = a * factor
    return (product >> 32) & _MASK, product & _MASK


@kernel
def _kept_kernel(
    mask_ptr, samples_ptr, seed, place, limit, batch, width, first, first_column,
    APART: tl.constexpr, BLOCK: tl.constexpr, UNUSED_BITS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    zeros = tl.zeros([BLOCK], dtype=tl.int32)
    counters = first + tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    sample = tl.load(samples_ptr + row % batch) + tl.zeros([BLOCK], dtype=tl.int64)
    position, k0, k1 = (zeros + row // batch).to(tl.uint32), (zeros + seed).to(tl.uint32), (zeros + place).to(tl.uint32)
    r0, r1, r2, r3 = tl.philox_impl(counters.to(tl.uint32), position, sample.to(tl.uint32), (sample >> 32).to(tl.uint32), k0, k1)
    columns = counters // APART * (4 * APART) + counters % APART - first_column
    places = mask_ptr + row.to(tl.int64) * width
    for lane in tl.static_range(4):
        drawn = r0 if lane == 0 else r1 if lane == 1 else r2 if lane == 2 else r3
        is_kept = (drawn >> UNUSED_BITS).to(tl.int32) >= limit
        inside = (columns >= 0) & (columns < width)
        tl.store(places + columns, is_kept.to(tl.uint8), mask=inside)
        columns += APART
