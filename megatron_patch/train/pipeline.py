"""One pipeline stage's share of a step in 1F1B order, with passes that may be CUDA graphs.

1F1B (one forward pass, then one backward pass) is the schedule of Narayanan et al., arXiv:2104.04473, section 2.2.
Passes and transfers come in the order of core's schedule without interleaving. Three things differ from core's:

- **Memory stays where it is.** A stage has one slot for each micro-batch that may be in flight. Activations are
  received into the slot and gradients are sent out of it, so a pass can be recorded once for each slot.
- **Transfers stay outside the graphs**, and the host never waits for the device.
- **A stage sends its input's gradient before it computes its weights' gradients.** At a step's end the stages before it
  wait less, which saves a third of the pipeline's bubble. Qi et al., arXiv:2401.10241, postpone the weights' gradients
  further; that would need more memory.

A forward pass leaves what autograd saved to its backward pass, and other passes run in between. So no other graph may
use that memory. Two rules keep it safe. A recorded backward pass does not free it: it keeps autograd's graph (`keep`),
whose output the slot holds. And each slot's forward pass has a memory pool of its own: in a shared pool, the memory
that one graph leaves its results in may be memory that an earlier recorded graph works in. Backward passes leave only a
gradient, which is sent at once, so they share a pool. On the last stage a micro-batch's backward pass follows its
forward pass at once, so one graph does both.
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
    """What a stage computes, in three functions.

    With `closes`, the last of `backward` and `weights` that runs also reduces the gradients over ranks.

    Attributes:
        forward: (batch, activations [S (/ TP), B, H] of the stage before, None on the first stage) → (output, sums).
            The output is the activations for the next stage; on the last stage it is the scaled loss. Sums are fp64
            [2], the summed losses and the number of tokens; zeros on every stage but the last.
        backward: (output of `forward`, its gradient or None for a loss, closes, keep) → the weights' gradients that are
            left for `weights`; None if none is left. `keep` keeps what autograd saved, so that another backward pass
            can use it.
        weights: (what `backward` returned, closes) computes those gradients.
    """

    forward: Callable[[Batch, torch.Tensor | None], tuple[torch.Tensor, torch.Tensor]]
    backward: Callable[[torch.Tensor, torch.Tensor | None, bool, bool], Postponed | None]
    weights: Callable[[Postponed, bool], None]


class _Slot:
    """Fixed memory of one micro-batch in flight: its batch, the activations received, and the forward pass's output."""

    def __init__(self, received: torch.Tensor | None) -> None:
        self.batch: Batch = {}
        self.received = received
        self.output: torch.Tensor | None = None

    def fill(self, batch: Batch) -> None:
        """Copy `batch` into the tensors of the slot's first batch, because recorded kernels read those.

        Copies through `.data`, as `StageTransfers.exchange` does, so that autograd does not see it.
        """
        if not self.batch:
            self.batch = batch
        for key, place in self.batch.items():
            if place is not batch[key]:
                place.data.copy_(batch[key], non_blocking=True)


# A pass returns its results, and the weights' gradients that it left for later.
Pass = Callable[[], tuple[tuple, Postponed | None]]


class PipelinePasses:
    """The passes of one stage: launched in a process's first step, recorded in its second, replayed from then on.

    Args:
        shape, dtype: of the activations between two stages, [S (/ TP), B, H].
        micro_batches: number in a step, for each replica.
        reduces: whether the pass that closes a step reduces gradients over ranks, and so needs a graph of its own.
        tune: what the ranks do together with the shapes of products that a pass has met.
    """

    together = 1  # micro-batches in a pass; two would halve the number in flight, and so fill the pipeline less
    keeping, decision = 0, ""

    def __init__(
        self, work: StageWork, layout: parallel.Layout, shape: tuple[int, ...], dtype: torch.dtype, micro_batches: int,
        reduces: bool, tune: Tune,
    ) -> None:  # fmt: skip
        self.work, self.layout, self.reduces, self.micro_batches = work, layout, reduces, micro_batches
        self.tune = tune
        self.launched = False  # whether a whole step was launched, so that the products have chosen their algorithms
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
        """Run forward and backward over random numbers of the activations' size, on all stages at once.

        The matrix products measure their algorithms here. Otherwise one stage after the other would measure in the
        first step while the rest wait. Sends nothing. Leaves wrong gradients, so the caller must begin the step anew.
        """
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
        """Run a step's `count` micro-batches; the first backward pass overwrites the gradients, later ones add.

        Returns fp64 [2]: the summed losses and the number of tokens; zeros on every stage but the last.
        """
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
        """Drop the graphs and slots. Call before NCCL's communicators are destroyed: the graphs use them."""
        self.recorded.clear()
        self.slots.clear()

    def _exchange(self, **tensors: torch.Tensor | None) -> None:
        """Send and receive these tensors, and let later kernels wait for them."""
        for transfer in self.transfers.exchange(**tensors):
            transfer.wait()

    def _slot(self, number: int) -> _Slot:
        """The slot of micro-batch `number`. Slots are used in turn."""
        return self.slots[number % len(self.slots)]

    def _forward(self, number: int, batch: Batch) -> torch.Tensor:
        """Run micro-batch `number` forward. Returns fp64 [2]: its summed losses and its tokens."""
        slot = self._slot(number)
        slot.fill(to_device(batch, self.layout.device))
        work = lambda: (self.work.forward(slot.batch, slot.received), None)  # noqa: E731
        (slot.output, kept), _ = self._perform(("forward", slot), work, closes=False)
        return kept

    def _backward(self, number: int, following: torch.Tensor | None = None, batch: Batch | None = None) -> torch.Tensor | int:
        """Run micro-batch `number` backward; on the last stage, which passes `batch`, run it forward first.

        Sends the input's gradient to the stage before and receives the next activations into `following`. Both
        transfers run while this stage computes its weights' gradients. Returns fp64 [2] as `_forward` with a batch,
        else 0.
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
        """Compute the weights' gradients that a backward pass has left, if it left any."""
        if postponed is not None:
            self.work.weights(postponed, closes)

    def _perform(self, key: tuple[object, ...], work: Pass, closes: bool) -> tuple[tuple, Callable[[], None]]:
        """Launch `work`, or replay its graph, which the first call after the first step records.

        Returns the pass's results, and a function that computes the weights' gradients that the pass left.
        """
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
        """Record a pass. Returns its graph, the graph of the weights' gradients that it left (or None), its results."""
        graph, (result, later) = record(work, None if leaves_activations else self.shared_pool)
        if leaves_activations:
            return graph, None, result
        self.shared_pool = graph.pool()
        if later is None:
            return graph, None, result
        return graph, record(lambda: self.work.weights(later, closes), self.shared_pool)[0], result
