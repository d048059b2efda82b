"""A frozen weight in 4 bits (kernels/nf4.py), written out in front of each product into memory that all layers share.

The layer's parameter keeps its shape, dtype, device and core's marks, and has no memory: all its numbers are one. What
fills a parameter fills `writable` instead.
"""

from __future__ import annotations

import megatron_patch.core.device  # noqa: F401  prepares megatron-core for this machine

import contextlib
from collections.abc import Iterator
from math import prod

import torch

from megatron_patch.errors import UserError
from megatron_patch.kernels.nf4 import BLOCK, Packed, dequantize, quantize
from megatron_patch.model.frozen_products import FrozenWeight

# One for each device and dtype, as large as the largest weight. Layers compute one after the other, each in one go.
_rooms: dict[tuple[torch.device, torch.dtype], torch.Tensor] = {}


class PackedWeight(FrozenWeight):
    """A weight in 4 bits, for one layer's forward pass and its backward pass."""

    def __init__(self, weight: torch.Tensor, packed: Packed) -> None:
        super().__init__(weight)
        self.packed = packed
        self._is_written = False

    def begin(self) -> None:
        """Forget what was written: other layers have used the memory since."""
        self._is_written = False

    def dense(self) -> torch.Tensor:
        """The weight [out, in] in its dtype, in the shared memory."""
        room = _room(self.weight)
        if not self._is_written:
            dequantize(self.packed, room)
            self._is_written = True
        return room


def _room(weight: torch.Tensor) -> torch.Tensor:
    """Shared memory of the shape [out, in], dtype and device of `weight`."""
    key, size = (weight.device, weight.dtype), prod(weight.shape)
    room = _rooms.get(key)
    if room is None or room.numel() < size:
        room = _rooms[key] = torch.empty(size, dtype=weight.dtype, device=weight.device)
    return room[:size].view(weight.shape)


class PackedParameter(torch.nn.Parameter):
    """A parameter [out, in] without memory, which says where its numbers are."""

    packed: Packed
    heights: tuple[int, ...]


def packed_parameter(weight: torch.nn.Parameter, heights: tuple[int, ...]) -> PackedParameter:
    """What takes the place of `weight` [out, in], with its numbers in 4 bits and its marks.

    Args:
        heights: rows of each tensor that is fused in it, in a period, as `quantize` takes them.

    Raises:
        UserError: its numbers are no multiple of a block's.
    """
    if weight.numel() % BLOCK:
        raise UserError(
            f"--qlora: a weight of this model has {list(weight.shape)} numbers on each GPU, no multiple of {BLOCK}; "
            "remove the flag."
        )
    _room(weight)
    shape_alone = PackedParameter(weight.detach().new_zeros(()).expand(weight.shape), requires_grad=False)
    vars(shape_alone).update(vars(weight))
    shape_alone.heights = heights
    shape_alone.packed = quantize(weight.detach(), heights)
    return shape_alone


@contextlib.contextmanager
def writable(parameter: PackedParameter) -> Iterator[torch.Tensor]:
    """Memory [out, in] to be filled with a parameter's numbers, which are packed afterwards."""
    room = _room(parameter)
    yield room
    parameter.packed = quantize(room, parameter.heights)
