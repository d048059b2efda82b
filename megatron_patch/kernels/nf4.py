"""Weights in 4 bits as bitsandbytes stores them: NF4 with double quantization (Dettmers et al., arXiv:2305.14314).

A weight's numbers are cut into blocks of 64, in the order of its rows. A number is its block's largest magnitude times
one of the 16 values of `CODE`, which are quantiles of the normal distribution. The magnitudes, less their mean, are
stored in 8 bits: in groups of 256 each is its group's largest magnitude times one of 256 values. That makes 4.13 bits a
number.

A product needs the weight in 16 bits again. `dequantize` writes it into memory that all layers share.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch

from ._dispatch import ceil_div, kernel, tl, use_triton

BLOCK, GROUP = 64, 256  # numbers of one scale; scales of one group
# Quantiles of the normal distribution, scaled to [−1, 1], with an exact zero: bitsandbytes' constants.
CODE = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
_AT_ONCE = 1 << 24  # numbers quantized at a time; a few fp32 copies of them are in memory
_PROGRAM = 64  # blocks of one program of the kernel: a part of one group


@dataclass(frozen=True)
class Packed:
    """A weight [out, in] in NF4; n = out · in / 64 blocks, g = ⌈n / 256⌉ groups.

    Attributes:
        codes: uint8 [out · in / 2], two numbers a byte, the first in the upper half.
        scales: uint8 [n], the blocks' magnitudes.
        groups: fp32 [g], the largest |magnitude − offset| of each group.
        offsets: fp32 [g], the mean magnitude; bitsandbytes has one of a tensor, and a fused weight holds several.
        shape: (out, in).
    """

    codes: torch.Tensor
    scales: torch.Tensor
    groups: torch.Tensor
    offsets: torch.Tensor
    shape: tuple[int, int]

    @property
    def nbytes(self) -> int:
        """Bytes of all of it."""
        return sum(one.nbytes for one in (self.codes, self.scales, self.groups, self.offsets))


def quantize(weight: torch.Tensor, heights: tuple[int, ...] = ()) -> Packed:
    """`weight` [out, in] of 16 or 32 bits in NF4, computed in PyTorch on its device.

    Args:
        heights: if several tensors are fused in the weight, the rows of each in a period of it. Each then gets an
            offset of its own, as if it had been quantized alone, unless its groups would not be the fused weight's.

    Raises:
        ValueError: out · in is no multiple of 64.
    """
    if weight.numel() % BLOCK:
        raise ValueError(f"weight is {list(weight.shape)}; its numbers must be a multiple of {BLOCK}.")
    blocks = weight.contiguous().view(-1, BLOCK)
    magnitudes = blocks.abs().amax(1).float()
    codes = torch.empty(weight.numel() // 2, dtype=torch.uint8, device=weight.device)
    rows = _AT_ONCE // BLOCK
    for first in range(0, len(blocks), rows):
        part = slice(first, first + rows)
        codes[first * BLOCK // 2 : (first + rows) * BLOCK // 2] = _codes(blocks[part], magnitudes[part])
    offsets = _offsets(magnitudes, weight, heights)
    scales, groups = _scales(magnitudes, offsets)
    return Packed(codes, scales, groups, offsets, (weight.size(0), weight.size(1)))


def _codes(blocks: torch.Tensor, magnitudes: torch.Tensor) -> torch.Tensor:
    """Two numbers a byte, uint8 [N · 32], of `blocks` [N, 64] and their `magnitudes` [N]."""
    inverse = 1.0 / magnitudes.clamp(min=1e-38)
    scaled = (blocks.float() * inverse[:, None]).clamp_(-1, 1)
    nearest = torch.bucketize(scaled.view(-1), _midpoints(_code(scaled.device)), out_int32=True).to(torch.uint8)
    return nearest[::2] << 4 | nearest[1::2]


def _offsets(magnitudes: torch.Tensor, weight: torch.Tensor, heights: tuple[int, ...]) -> torch.Tensor:
    """The mean magnitude of each group's tensor, fp32 [g]."""
    groups = ceil_div(len(magnitudes), GROUP)
    wide = [height * weight.size(1) // BLOCK for height in heights]  # blocks of each part in a period
    if len(wide) < 2 or any(blocks % GROUP for blocks in wide):
        return magnitudes.mean().expand(groups).contiguous()
    periods = magnitudes.view(-1, sum(wide))
    means = [part.contiguous().mean() for part in periods.split(wide, 1)]
    one_period = torch.cat([mean.expand(blocks // GROUP) for mean, blocks in zip(means, wide)])
    return one_period.repeat(len(periods))


def _scales(magnitudes: torch.Tensor, offsets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(uint8 [n], fp32 [g]) of the magnitudes [n] less their group's offset."""
    count = len(magnitudes)
    room = torch.zeros(len(offsets) * GROUP, device=magnitudes.device)
    room[:count] = magnitudes - offsets.repeat_interleave(GROUP)[:count]
    room = room.view(-1, GROUP)
    groups = room.abs().amax(1)
    scaled = (room * (1.0 / groups.clamp(min=1e-38))[:, None]).clamp_(-1, 1)
    return torch.bucketize(scaled.view(-1)[:count], _midpoints(_scale_code(scaled.device)), out_int32=True).to(
        torch.uint8
    ), groups


def dequantize(packed: Packed, out: torch.Tensor, *, implementation: str | None = None) -> torch.Tensor:
    """Write the weight into `out` [out, in], computed in fp32 and rounded once to its dtype; returns it.

    Raises:
        ValueError: `out` has another shape, or gaps.
    """
    if tuple(out.shape) != packed.shape or not out.is_contiguous():
        raise ValueError(f"out is {list(out.shape)}; it must be {list(packed.shape)} without gaps.")
    if not use_triton(implementation, out):
        return out.copy_(dequantize_reference(packed))
    blocks = len(packed.scales)
    # Without fused multiply-adds, which would round a scale otherwise than bitsandbytes does.
    _dequantize_kernel[(ceil_div(blocks, _PROGRAM),)](
        packed.codes, packed.scales, packed.groups, packed.offsets, _scale_code(out.device), _code(out.device), out,
        blocks, _PROGRAM, enable_fp_fusion=False,
    )  # fmt: skip
    return out


def dequantize_reference(packed: Packed) -> torch.Tensor:
    """The weight in fp32 [out, in], in PyTorch."""
    device, count = packed.codes.device, len(packed.scales)
    groups, offsets = (one.repeat_interleave(GROUP)[:count] for one in (packed.groups, packed.offsets))
    magnitudes = _scale_code(device)[packed.scales.int()] * groups + offsets
    numbers = torch.stack((packed.codes >> 4, packed.codes & 15), dim=1)
    return (_code(device)[numbers.int()].view(-1, BLOCK) * magnitudes[:, None]).view(packed.shape)


@functools.cache
def _code(device: torch.device) -> torch.Tensor:
    """`CODE`, fp32 [16]."""
    return torch.tensor(CODE, device=device)


@functools.cache
def _scale_code(device: torch.device) -> torch.Tensor:
    """The 256 values of a scale, fp32, ascending: bitsandbytes' dynamic map (arXiv:2110.02861).

    Seven powers of ten, and in the e-th of them the 2ᵉ middles of as many equal parts of [0.1, 1], with both signs;
    then 0 and 1.
    """
    values = [0.0, 1.0]
    for exponent in range(7):
        ends = torch.linspace(0.1, 1, 2**exponent + 1, dtype=torch.float32)
        middles = 10 ** (exponent - 6) * (ends[:-1] + ends[1:]) / 2
        values += [*middles.tolist(), *(-middles).tolist()]
    return torch.tensor(sorted(values), device=device)


def _midpoints(code: torch.Tensor) -> torch.Tensor:
    """Between which values of an ascending `code` a number falls."""
    return (code[:-1] + code[1:]) / 2


@kernel
def _dequantize_kernel(
    codes_ptr, scales_ptr, groups_ptr, offsets_ptr, scale_code_ptr, code_ptr, out_ptr, blocks, BLOCKS: tl.constexpr
):
    first = tl.program_id(0) * BLOCKS
    block = first + tl.arange(0, BLOCKS)
    mask = block < blocks
    # All blocks of a program are in one group, since BLOCKS divides 256.
    largest, offset = tl.load(groups_ptr + first // 256), tl.load(offsets_ptr + first // 256)
    scale = tl.load(scales_ptr + block, mask=mask, other=0).to(tl.int32)
    magnitude = (tl.load(scale_code_ptr + scale) * largest + offset)[:, None]
    place = block.to(tl.int64)[:, None]
    two = tl.load(codes_ptr + place * 32 + tl.arange(0, 32)[None, :], mask=mask[:, None], other=0).to(tl.int32)
    upper = tl.load(code_ptr + (two >> 4)) * magnitude
    lower = tl.load(code_ptr + (two & 15)) * magnitude
    numbers = tl.reshape(tl.join(upper, lower), (BLOCKS, 64))
    tl.store(out_ptr + place * 64 + tl.arange(0, 64)[None, :], numbers.to(out_ptr.dtype.element_ty), mask=mask[:, None])
