"""ZeRO's gathers of weights whose products are FP8 ones: FP8 numbers travel, half the bytes of bf16.

A weight has one factor, that of its largest number, and no rank has the whole new weight. So each rank finds the
largest numbers of its parts, and one small reduction over all weights tells every rank the largest of each. Then each
rank casts its parts of the bf16 weights, the FP8 numbers are gathered to where the products read them, and each rank
transposes them for itself. The numbers are those of a cast of the whole bf16 weight, bit for bit.

What a rank has in bf16 of the other ranks' parts is then older than their weights. `WeightGathers.finish` gathers it.
"""

from __future__ import annotations

import megatron_patch.core.device  # noqa: F401  prepares megatron-core for this machine

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from megatron.core.distributed.param_and_grad_buffer import _ParamAndGradBucket as Bucket
from torch import distributed
from torch.distributed import ProcessGroup

from megatron_patch.core.fp8_weights import fp8_copy, lay_values
from megatron_patch.core.peer_memory import Peers
from megatron_patch.kernels.fp8 import CELLS, E4M3, cast_part, complete, largest


class Copies(NamedTuple):
    """Copies of tensors to tensors of the same sizes."""

    to: list[torch.Tensor]
    of: list[torch.Tensor]

    def run(self) -> None:
        """All of them, in one launch."""
        if self.to:
            torch._foreach_copy_(self.to, self.of)


@dataclass(frozen=True)
class _Part:
    """This rank's part of a weight, [n]: in bf16, and where it lies in FP8; and the weight's number."""

    bf16: torch.Tensor
    fp8: torch.Tensor
    number: int


def pays(bucket: Bucket) -> bool:
    """Whether a bucket is fewer bytes with the weights in FP8 that are multiplied so, and the rest in bf16."""
    rest = sum(weight.numel() for weight in bucket.params_list if fp8_copy(weight) is None)
    return 2 * rest < bucket.param_data.numel()


class Fp8Gathers:
    """The gathers of those buckets of a model that `pays` names.

    Args:
        buckets: these, in the order in which they are gathered.
        group: the ranks that share the weights.
        of_ranks: every rank's bf16 numbers of each bucket, if the ranks read each other's memory.
        peers: these ranks then.
    """

    def __init__(
        self, buckets: Iterable[Bucket], group: ProcessGroup, of_ranks: dict[Bucket, list[torch.Tensor]], peers: Peers | None
    ) -> None:
        self.group, self.peers, self.rank, self.size = group, peers, group.rank(), group.size()
        self.weights = {bucket: [one for one in bucket.params_list if fp8_copy(one) is not None] for bucket in buckets}
        self.number_of = {weight: number for number, weight in enumerate(itertools.chain(*self.weights.values()))}
        like = next(iter(self.weights)).param_data
        # Each bucket's FP8 numbers, where their weights lie in it. The places of other weights are unused.
        memory = like.new_zeros(sum(bucket.param_data.numel() for bucket in self.weights), dtype=torch.uint8)
        self.numbers = self._by_bucket(memory)
        for bucket, weights in self.weights.items():
            for weight in weights:
                lay_values(weight, self.numbers[bucket][_place(weight, bucket)])
        self.parts = {bucket: list(self._parts(bucket)) for bucket in self.weights}
        # Of this rank's parts, and of whole weights. Others read the first while this rank writes the second.
        self.mine = like.new_zeros(len(self.number_of), CELLS, dtype=torch.float32)
        self.largest = torch.zeros_like(self.mine)
        self.packed, self.packing, self.unpacking = like[:0], Copies([], []), Copies([], [])
        if peers is None:
            self.packed, self.packing, self.unpacking = self._packed(like)
        else:
            self.largest_of_ranks = peers.views(self.mine)
            self.numbers_of_ranks = [self._by_bucket(view) for view in peers.views(memory)]
            self.unpacking = self._rest(of_ranks)

    def find(self) -> None:
        """The largest numbers of this rank's parts. Call it after the update."""
        self.mine.zero_()
        for part in itertools.chain(*self.parts.values()):
            largest(part.bf16, out=self.mine[part.number])

    def agree(self) -> None:
        """The largest numbers of whole weights, and the buckets' other weights, in bf16. They are few: the norms."""
        self.largest.copy_(self.mine)
        if self.peers is None:
            distributed.all_reduce(self.largest, op=distributed.ReduceOp.MAX, group=self.group)
            self.packing.run()
            if self.packed.numel():
                distributed.all_gather_into_tensor(self.packed.view(-1), self.packed[self.rank], group=self.group)
        else:
            for rank in self.peers.others(range(self.size)):
                torch.maximum(self.largest, self.largest_of_ranks[rank], out=self.largest)
        self.unpacking.run()

    def gather(self, bucket: Bucket) -> None:
        """Cast this rank's parts of a bucket's weights, and get the others'."""
        for part in self.parts[bucket]:
            cast_part(part.bf16, self.largest[part.number], part.fp8)
        numbers = self.numbers[bucket]
        if self.peers is None:
            own = numbers[_share(bucket, self.rank, self.size)]
            distributed.all_gather_into_tensor(numbers, own, group=self.group)
        else:
            self.peers.meet()
            for rank in self.peers.others(range(self.size)):
                its = _share(bucket, rank, self.size)
                numbers[its].copy_(self.numbers_of_ranks[rank][bucket][its])
        for weight in self.weights[bucket]:
            copy = fp8_copy(weight)
            assert copy is not None
            complete(copy, self.largest[self.number_of[weight]])

    def close(self) -> None:
        """Let go of other ranks' memory."""
        self.largest_of_ranks, self.numbers_of_ranks, self.unpacking = [], [], Copies([], [])

    def _by_bucket(self, memory: torch.Tensor) -> dict[Bucket, torch.Tensor]:
        """The parts of memory for all buckets that belong to each."""
        return dict(zip(self.weights, memory.split([bucket.param_data.numel() for bucket in self.weights])))

    def _parts(self, bucket: Bucket) -> Iterator[_Part]:
        for weight in self.weights[bucket]:
            here = _common(_place(weight, bucket), _share(bucket, self.rank, self.size))
            if here.start < here.stop:
                yield _Part(bucket.param_data[here], self.numbers[bucket][here].view(E4M3), self.number_of[weight])

    def _pieces(self, rank: int) -> Iterator[tuple[Bucket, slice]]:
        """Which places of the buckets hold what a rank has of weights that are not multiplied in FP8."""
        for bucket in self.weights:
            for weight in bucket.params_list:
                here = _common(_place(weight, bucket), _share(bucket, rank, self.size))
                if fp8_copy(weight) is None and here.start < here.stop:
                    yield bucket, here

    def _rest(self, of_ranks: dict[Bucket, list[torch.Tensor]]) -> Copies:
        """Copies of those places, straight from the other ranks' memory."""
        found = [(bucket, here, rank) for rank in range(self.size) if rank != self.rank for bucket, here in self._pieces(rank)]
        return Copies(
            [bucket.param_data[here] for bucket, here, _ in found], [of_ranks[bucket][rank][here] for bucket, here, rank in found]
        )

    def _packed(self, like: torch.Tensor) -> tuple[torch.Tensor, Copies, Copies]:
        """Memory for one gather of all those places, [ranks, n], and the copies into it and out of it."""
        counts = [sum(here.stop - here.start for _, here in self._pieces(rank)) for rank in range(self.size)]
        packed = like.new_zeros(self.size, max(counts))
        packing, unpacking = Copies([], []), Copies([], [])
        for rank in range(self.size):
            first = 0
            for bucket, here in self._pieces(rank):
                place, piece = packed[rank, first : first + here.stop - here.start], bucket.param_data[here]
                copies, to, of = (packing, place, piece) if rank == self.rank else (unpacking, piece, place)
                copies.to.append(to)
                copies.of.append(of)
                first += piece.numel()
        return packed, packing, unpacking


def _place(weight: torch.Tensor, bucket: Bucket) -> slice:
    """Where a weight lies in its bucket."""
    first = weight.storage_offset() - bucket.param_data.storage_offset()
    return slice(first, first + weight.numel())


def _share(bucket: Bucket, rank: int, size: int) -> slice:
    """What of a bucket a rank updates."""
    part = bucket.param_data.numel() // size
    return slice(rank * part, (rank + 1) * part)


def _common(one: slice, other: slice) -> slice:
    """What two slices have in common; empty or backwards if nothing."""
    return slice(max(one.start, other.start), min(one.stop, other.stop))
