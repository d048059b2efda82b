"""ZeRO's reduction of gradients through copy engines, while the backward pass runs. It replaces DDP's reduce-scatter.

As soon as a bucket's gradients are there, each rank copies what the others have of its own part, and adds it in
float32. peer_memory.py says what that saves over NCCL. core's DDP still decides when a bucket is due.
"""

from __future__ import annotations

import megatron_patch.core.device  # noqa: F401  prepares megatron-core for this machine

import functools

import torch
from megatron.core.distributed import DistributedDataParallel
from megatron.core.distributed.param_and_grad_buffer import _ParamAndGradBucket as Bucket
from megatron.core.distributed.param_and_grad_buffer import _ParamAndGradBucketGroup as BucketGroup

from megatron_patch.core.peer_memory import Peers, Side
from megatron_patch.kernels.sums import sum_parts

# Elements of a part that are copied and added at once: 64 MiB from each rank.
_PIECE = 1 << 24


class GradientReductions:
    """Takes the place of `start_grad_sync` and `finish_grad_sync` in every bucket group of the model."""

    def __init__(self, model: DistributedDataParallel, peers: Peers) -> None:
        self.peers, self.side = peers, Side()
        self.of_ranks: dict[Bucket, list[torch.Tensor]] = {}
        for buffer in model.buffers:
            whole = peers.views(buffer.grad_data)
            for bucket in buffer.buckets:
                assert bucket.gradient_scaling_factor == 1.0, "losses are summed, and divided once by their number"
                there = slice(bucket.offset, bucket.offset + bucket.grad_data.numel())
                self.of_ranks[bucket] = [data[there] for data in whole]
        largest = max(bucket.grad_data.numel() for bucket in self.of_ranks) // peers.size
        like = next(iter(self.of_ranks)).grad_data
        self.parts = like.new_empty(peers.size - 1, min(largest, _PIECE))
        self.last = model.bucket_groups[-1]  # in the order in which DDP finishes them
        for group in model.bucket_groups:
            group.start_grad_sync = functools.partial(self._start, group)
            group.finish_grad_sync = functools.partial(self._finish, group)

    def close(self) -> None:
        """Let go of the other ranks' memory."""
        self.of_ranks.clear()

    def _start(self, group: BucketGroup, force_all_reduce: bool = False) -> None:
        assert not force_all_reduce
        if group.is_first_batch and group.grad_reduce_handle is not None:
            return  # as core's: in the first batch hooks and `finish_grad_sync` both call
        assert group.grad_reduce_handle is None
        with self.side.after():
            self.peers.meet()
            for bucket in group.buckets:
                self._reduce(bucket)
        group.grad_reduce_handle = self.side

    def _finish(self, group: BucketGroup, force_all_reduce: bool = False) -> None:
        group.param_gather_dispatched = False
        if group.is_first_batch or not group.ddp_config.overlap_grad_reduce:
            self._start(group, force_all_reduce)
        assert group.grad_reduce_handle is not None, "not all gradients of the group were ready"
        if group is self.last:
            with self.side.after():
                self.peers.meet()  # the others have read this rank's gradients, which may be written from here on
        self.side.join()
        group.grad_reduce_handle = None

    @torch.no_grad()
    def _reduce(self, bucket: Bucket) -> None:
        """This rank's part of the bucket becomes the sum of all ranks'."""
        part = bucket.grad_data.numel() // self.peers.size
        first = self.peers.rank * part
        for start in range(first, first + part, _PIECE):
            piece = slice(start, min(start + _PIECE, first + part))
            own = bucket.grad_data[piece]
            parts = self.parts.view(-1)[: self.parts.size(0) * own.numel()].view(-1, own.numel())
            for place, rank in zip(parts, self.peers.others(range(self.peers.size))):
                place.copy_(self.of_ranks[bucket][rank][piece])
            sum_parts(own, parts, own)
