"""One pipeline stage's share of a step, one forward pass then one backward pass (1F1B: Narayanan et al., arXiv:2104.04473,
section 2.2), with passes that may be CUDA graphs.

The order of passes and of transfers is that of core's schedule without interleaving. What differs is the memory: activations
come into and gradients go out of places that stay, one for each micro-batch that may be in flight on the stage, so that a
pass can be recorded once for each place. Transfers stay outside the graphs, and nothing waits for the device. A stage computes
the gradients of its weights only when it has sent its input's gradient (the half of what Qi et al., arXiv:2401.10241, do that
needs no more memory): at a step's end the stages before wait less, a third of the pipeline's bubble.

A forward pass leaves to its backward pass what autograd has saved, while other passes run in between. So that memory must not
be any other graph's. A recorded backward pass does not give it back, since it keeps autograd's graph (`keep`), whose output the
stage holds; and each place's forward pass has a memory pool of its own, for what one graph leaves could lie where a graph that
was recorded before it works. Backward passes leave only a gradient, which is sent at once, and share a pool. The last stage,
where a micro-batch's backward pass follows its forward pass at once, has one graph for both.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from megatron_patch.core import parallel
from megatron_patch.core.weight_gradients import Postponed
from megatron_patch.data.batches import Batch, to_device
from megatron_patch.train.graphs import Tune, record, tuned


@dataclass(frozen=True)
class StageWork:
    """What a stage computes.

    Attributes:
        forward: (batch, activations of the stage before or None) → (activations for the next stage or the scaled loss,
            losses and tokens summed: fp64 [2], zeros but on the last stage).
        backward: (what `forward` returned first, its gradient or None for a loss, closes, keep) → weights' gradients that are
            left for `weights`, None where all is done. With `keep` another one can follow over the same saved tensors.
        weights: (what `backward` left, closes). The last of the two reduces gradients over ranks with `closes`.
    """

    forward: Callable[[Batch, torch.Tensor | None], tuple[torch.Tensor, torch.Tensor]]
    backward: Callable[[torch.Tensor, torch.Tensor | None, bool, bool], Postponed | None]
    weights: Callable[[Postponed, bool], None]


class _Slot:
    """Places of a micro-batch in flight: its batch, what came from the stage before, what the forward pass made of it."""

    def __init__(self, received: torch.Tensor | None) -> None:
        self.batch: Batch = {}
        self.received = received
        self.output: torch.Tensor | None = None

    def fill(self, batch: Batch) -> None:
        """Copy into the tensors of the first batch, which recorded kernels read; `.data`, as in `StageTransfers.exchange`."""
        if not self.batch:
            self.batch = batch
        for key, place in self.batch.items():
            if place is not batch[key]:
                place.data.copy_(batch[key], non_blocking=True)


# A pass: what it gives at once, and what it leaves for later.
Pass = Callable[[], tuple[tuple, Postponed | None]]


class PipelinePasses:
    """The passes of one stage, launched in a process's first step and recorded in its second.

    Args:
        shape, dtype: of the activations between two stages, [S (/ TP), B, H].
        micro_batches: of a step, for each replica.
        reduces: whether the pass that closes a step differs from the others, since it reduces gradients over ranks.
        tune: what the ranks do together with the shapes of products that a pass has met.
    """

    together = 1  # micro-batches in a pass: with two the pipeline would be half as full
    decision = ""

    def __init__(
        self, work: StageWork, layout: parallel.Layout, shape: tuple[int, ...], dtype: torch.dtype, micro_batches: int,
        reduces: bool, tune: Tune,
    ) -> None:  # fmt: skip
        self.work, self.layout, self.reduces, self.micro_batches = work, layout, reduces, micro_batches
        self.tune = tune
        self.launched = False  # a whole step, after which products' algorithms are chosen
        self.recorded: dict[tuple[object, ...], tuple[torch.cuda.CUDAGraph, torch.cuda.CUDAGraph | None, tuple]] = {}
        self.shared_pool: tuple[int, int] | None = None
        self.transfers = parallel.StageTransfers()
        stages, stage = self.transfers.stages, self.transfers.stage
        self.ahead = min(stages - stage - 1, micro_batches)  # forward passes before the first backward pass
        empty = functools.partial(torch.empty, shape, dtype=dtype, device=layout.device)
        self.gradient = None if layout.is_last_stage else empty()  # of what went to the next stage
        self.slots = [
            _Slot(None if layout.is_first_stage else empty(requires_grad=True)) for _ in range(min(stages - stage, micro_batches))
        ]

    def rehearse(self, batch: Batch) -> None:
        """Forward and backward of numbers out of nowhere, as large as activations are, on all stages at once: products are
        measured here, and not by one stage after the other while the rest wait. Gradients are spoilt; nothing is sent."""
        generator = torch.Generator(self.layout.device).manual_seed(1)
        slot = self.slots[0]
        slot.fill(to_device(batch, self.layout.device))
        for place in (slot.received, self.gradient):
            if place is not None:
                place.data.normal_(generator=generator)

        def both() -> None:
            output, _ = self.work.forward(slot.batch, slot.received)
            self._later(self.work.backward(output, self.gradient, False, False), closes=False)

        tuned(both, self.tune)
        if slot.received is not None:
            slot.received.grad = None

    def run(self, batches: Iterator[Batch], count: int) -> torch.Tensor:
        """The `count` micro-batches of a step, the first of which overwrite gradients: fp64 [2], losses and tokens summed,
        zeros on every stage but the last."""
        assert count == self.micro_batches
        sums = torch.zeros(2, dtype=torch.float64, device=self.layout.device)
        steady = count - self.ahead
        for number in range(self.ahead):
            self._exchange(recv_prev=self._slot(number).received)
            sums += self._forward(number, next(batches))
            self._exchange(send_next=self._slot(number).output)
        if steady:
            self._exchange(recv_prev=self._slot(self.ahead).received)
        for number in range(steady):
            newest = number + self.ahead
            following = self._slot(newest + 1).received if number + 1 < steady else None
            if self.layout.is_last_stage:
                sums += self._backward(number, following, next(batches))
            else:
                sums += self._forward(newest, next(batches))
                self._exchange(send_next=self._slot(newest).output, recv_next=self.gradient)
                self._backward(number, following)
        for number in range(steady, count):
            self._exchange(recv_next=self.gradient)
            self._backward(number)
        self.launched = True
        return sums

    def close(self) -> None:
        """Let go of the graphs, before NCCL's communicators, which they use, are taken down."""
        self.recorded.clear()
        self.slots.clear()

    def _exchange(self, **tensors: torch.Tensor | None) -> None:
        for transfer in self.transfers.exchange(**tensors):
            transfer.wait()

    def _slot(self, number: int) -> _Slot:
        return self.slots[number % len(self.slots)]

    def _forward(self, number: int, batch: Batch) -> torch.Tensor:
        """Micro-batch `number` through the stage: its losses and tokens."""
        slot = self._slot(number)
        slot.fill(to_device(batch, self.layout.device))
        work = lambda: (self.work.forward(slot.batch, slot.received), None)  # noqa: E731
        (slot.output, kept), _ = self._perform(("forward", slot), work, closes=False)
        return kept

    def _backward(self, number: int, following: torch.Tensor | None = None, batch: Batch | None = None) -> torch.Tensor | int:
        """The backward pass of micro-batch `number`, on the last stage with its forward pass over `batch`: losses and tokens.

        The stage before gets its gradient, and sends what is to come to `following`, while the weights' gradients are computed.
        """
        slot, opens, closes = self._slot(number), number == 0, self.reduces and number + 1 == self.micro_batches
        if batch is not None:
            slot.fill(to_device(batch, self.layout.device))

        def work() -> tuple[tuple, Postponed | None]:
            kept: torch.Tensor | int
            output, kept, keep = slot.output, 0, self.launched
            if batch is not None:
                (output, kept), keep = self.work.forward(slot.batch, slot.received), False
            if slot.received is not None:
                slot.received.grad = None
            assert output is not None, "the forward pass has gone through this slot"
            later = self.work.backward(output, self.gradient, closes, keep)
            return (kept, None if slot.received is None else slot.received.grad), later

        (kept, back), weights = self._perform((slot, opens, closes), work, closes)
        transfers = self.transfers.exchange(send_prev=back, recv_prev=following)
        weights()
        for transfer in transfers:
            transfer.wait()
        return kept

    def _later(self, postponed: Postponed | None, closes: bool) -> None:
        if postponed is not None:
            self.work.weights(postponed, closes)

    def _perform(self, key: tuple[object, ...], work: Pass, closes: bool) -> tuple[tuple, Callable[[], None]]:
        """`work` launched, or its graph replayed, which is recorded the first time: what it gives, and a function that does
        what it has left for later."""
        if not self.launched:
            result, later = work()
            return result, lambda: self._later(later, closes)
        if key not in self.recorded:
            self.recorded[key] = self._record(work, closes, leaves_activations=key[0] == "forward")
        graph, weights, result = self.recorded[key]
        graph.replay()
        return result, lambda: None if weights is None else weights.replay()

    def _record(
        self, work: Pass, closes: bool, leaves_activations: bool
    ) -> tuple[torch.cuda.CUDAGraph, torch.cuda.CUDAGraph | None, tuple]:
        """A pass as a graph, and as another what it leaves for later, if it does."""
        graph, (result, later) = record(work, None if leaves_activations else self.shared_pool)
        if leaves_activations:
            return graph, None, result
        self.shared_pool = graph.pool()
        if later is None:
            return graph, None, result
        return graph, record(lambda: self.work.weights(later, closes), self.shared_pool)[0], result
