"""FP8 copies of weights: cast once a step, read by every micro-batch's products.

A weight [out, in] is summed along `in` in the forward product and along `out` in that of the input's gradient. FP8
products want their factors contiguous along the sum, so there are two copies. From the first step on they lie at one
place in memory, because recorded graphs read them there. No checkpoint has them.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from megatron_patch.kernels.fp8 import E4M3, Cast, cast, room


def keep_fp8_copy(weight: torch.nn.Parameter) -> None:
    """Give `weight` [out, in] memory for FP8 copies, which `cast_weights` fills from then on."""
    weight.fp8_copy = room(weight, E4M3)  # type: ignore[attr-defined]  # a mark of this module's own


def fp8_copy(weight: torch.Tensor) -> Cast | None:
    """The FP8 copies of `weight`, if its products are FP8 ones."""
    return getattr(weight, "fp8_copy", None)


def lay_values(weight: torch.nn.Parameter, memory: torch.Tensor) -> None:
    """Let the FP8 copy of `weight` that is not transposed lie in `memory` from now on, uint8 [out · in]."""
    copy = fp8_copy(weight)
    assert copy is not None
    weight.fp8_copy = copy._replace(values=memory.view(E4M3).view(weight.shape))  # type: ignore[attr-defined]


@torch.no_grad()
def cast_weights(weights: Iterable[torch.nn.Parameter]) -> None:
    """Cast those of the `weights` that have FP8 copies. Call it after the weights were written.

    The host does not wait for the device.
    """
    for weight in weights:
        copy = fp8_copy(weight)
        if copy is not None:
            cast(weight.detach(), E4M3, out=copy)
