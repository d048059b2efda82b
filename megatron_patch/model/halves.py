"""Layers under tensor and sequence parallelism, half of the batch beside the other half's communication.

A layer gathers the sequence before a product and scatters its sums after one, twice each, and what follows waits for it: with
four H200s a quarter of a step. Here the batch's two halves go through the layers one step apart, each on its way while the other
computes (as in Domino: Wang et al., arXiv:2409.15241):

    first half    norm        qkv, attention   projection   norm       gate, up        down       norm ...
    second half        down                norm        qkv, attention      projection      norm        gate, up ...

A norm's step begins with the wait for its scattered sums and ends with the start of its gather. The order holds backwards too,
since autograd goes back through what was done last first. The second half's last product is left to the next layer, where the
first half's norm comes before it; what is under way travels as core's `context`.
"""

from __future__ import annotations

import megatron_patch.core.device  # noqa: F401  prepares megatron-core for this machine

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.distributed import ProcessGroup

from megatron_patch.kernels.swiglu import swiglu
from megatron_patch.model.linear import Arriving, gather, scatter_sums

if TYPE_CHECKING:
    from megatron_patch.model.llama import LlamaLayer


class _Half:
    """One half of the batch between two steps.

    Attributes:
        sums: what the last product's scattered sums will be, [S / TP, B / 2, H].
        residual: what is to be added to it; None at the first layer.
        counts: whether DDP is told of this half's use of the weights; one of both must be.
    """

    def __init__(self, hidden: torch.Tensor, counts: bool) -> None:
        self.sums, self.residual, self.counts = hidden, None, counts
        self._passage: _Passage | None = None

    def leave(self, partial: torch.Tensor, group: ProcessGroup) -> None:
        """Begin to sum a product over ranks."""
        self._passage = _Passage(group)
        self.sums = _Begin.apply(partial, self._passage)

    def arrive(self) -> torch.Tensor:
        """The sums, from here on to be read."""
        return self.sums if self._passage is None else _Finish.apply(self.sums, self._passage)


@dataclass
class Halves:
    """Both, after a layer: the second has its last step still before it."""

    first: _Half
    second: _Half
    last_step: Iterator[None]


@dataclass
class _Passage:
    """A scattering of sums, and on the way back a gathering of their gradients, between its beginning and its end."""

    group: ProcessGroup
    forward: Arriving | None = None
    backward: Arriving | None = None


class _Begin(torch.autograd.Function):
    """Partial sums [S, B, H] → sums [S / TP, B, H], not to be read before `_Finish`."""

    @staticmethod
    def forward(ctx: Any, partial: torch.Tensor, passage: _Passage) -> torch.Tensor:
        ctx.passage = passage
        passage.forward = scatter_sums(partial, passage.group)
        return passage.forward.tensor

    @staticmethod
    def backward(ctx: Any, _: torch.Tensor) -> tuple[torch.Tensor, None]:
        whole, ctx.passage.backward = ctx.passage.backward.get(), None
        return whole, None


class _Finish(torch.autograd.Function):
    """The sums, written by now; on the way back the gathering of their gradients begins here, and `_Begin` ends it."""

    @staticmethod
    def forward(ctx: Any, sums: torch.Tensor, passage: _Passage) -> torch.Tensor:
        ctx.passage = passage
        passage.forward.get()
        passage.forward = None
        return sums.view_as(sums)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        ctx.passage.backward = gather(gradient.contiguous(), ctx.passage.group)
        return gradient, None


def halves_pay(hidden: torch.Tensor, segments: torch.Tensor | None) -> bool:
    """Whether [S / TP, B, H] can go through in halves: a batch of an even number of samples that learns, and is not packed."""
    return hidden.size(1) % 2 == 0 and segments is None and torch.is_grad_enabled()


def layer_by_halves(
    layer: LlamaLayer, hidden: torch.Tensor, context: Halves | None, rotary: torch.Tensor
) -> tuple[torch.Tensor, Halves | None]:
    """One layer: from [S / TP, B, H], for the first, or from the `Halves` of the one before; to such, or for the last to
    [S / TP, B, H] and None. In between `hidden` is handed on as it is."""
    if context is None:
        parts = (part.contiguous() for part in hidden.chunk(2, dim=1))
        context = Halves(_Half(next(parts), counts=False), _Half(next(parts), counts=True), iter(()))
    first, second = _steps(layer, context.first, rotary), _steps(layer, context.second, rotary)
    next(first)
    _end(context.last_step)
    for _ in range(4):
        next(first)
        next(second)
    _end(first)
    next(second)
    if layer.leaves_sum:
        return hidden, Halves(context.first, context.second, second)
    _end(second)
    return torch.cat([half.residual + half.arrive() for half in (context.first, context.second)], dim=1), None


def _end(steps: Iterator[None]) -> None:
    """The one step that is left, if any."""
    for _ in steps:
        raise AssertionError("more than one step was left")


def _steps(layer: LlamaLayer, half: _Half, rotary: torch.Tensor) -> Iterator[None]:
    """The six steps of one half through a layer."""
    attention, mlp, group = layer.self_attention, layer.mlp, layer.self_attention.linear_qkv.tp_group
    if half.residual is None:
        normed, half.residual = layer.input_layernorm.with_residual(half.arrive())
    else:
        normed, half.residual = layer.input_layernorm.add(half.arrive(), half.residual)
    arriving = gather(normed.detach(), group)
    yield
    mixed = attention.attend(attention.linear_qkv.of_arriving(normed, arriving, half.counts), None, rotary)
    yield
    half.leave(attention.linear_proj.partial(mixed, half.counts), group)
    yield
    normed, half.residual = layer.pre_mlp_layernorm.add(half.arrive(), half.residual)
    arriving = gather(normed.detach(), group)
    yield
    activated = swiglu(mlp.linear_fc1.of_arriving(normed, arriving, half.counts))
    yield
    half.leave(mlp.linear_fc2.partial(activated, half.counts), group)
