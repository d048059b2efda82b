"""ZeRO's gathering of updated weights, beside the next forward pass. Each layer waits for its own weights alone.

core can overlap the two as well, but its handles make Python wait, and a CUDA graph records no Python. Here the gathers
run on a stream of their own, in the order in which the forward pass needs the weights. Each gather records a CUDA event
when it is done, and each module waits for the events of its weights before it runs. The events are external (CUDA's
term): a wait that was recorded in a graph then waits, at every replay, for the event's latest record.

Some hundred gathers are some hundred launches, and the next forward pass is launched after them. So the gathers are
recorded as one graph too.

Where the ranks read each other's memory (`peer_memory.py`), each rank copies the others' parts, which takes nothing
from that forward pass. No rank updates its part again before all have copied it: the norm of the next gradients waits
for every rank's passes.

Weights whose products are FP8 ones are gathered in FP8 (`fp8_gathers.py`), and in bf16 only for `finish`.
"""

from __future__ import annotations

import megatron_patch.core.device as device

from collections.abc import Callable, Iterable

import torch
from megatron.core.distributed import DistributedDataParallel
from megatron.core.distributed.param_and_grad_buffer import _ParamAndGradBucket as Bucket
from megatron.core.distributed.param_and_grad_buffer import _ParamAndGradBucketGroup as BucketGroup
from torch.distributed import ProcessGroup

from megatron_patch.core.fp8_gathers import Fp8Gathers, pays
from megatron_patch.core.fp8_weights import cast_weights
from megatron_patch.core.peer_memory import Peers


class WeightGathers:
    """The gathers of one model, whose DDP buffers hold the weights in buckets.

    Args:
        model: core's DDP around the model; its bucket groups are what is gathered.
        ranks: those that share the weights.
        records: whether the gathers become a CUDA graph. The first time they are launched one by one, because NCCL sets
            up its communicator then; the second time they are recorded.
        peers: these ranks, if they read each other's memory.

    Attributes:
        is_stale: whether a rank has others' parts of weights as they are now in FP8 alone.
        lazy: for CPUs, which have no streams. True: a group is gathered when someone waits for it, which is as late as
            a GPU may gather it. Tests set it, to find a module that does not wait. False: all are gathered at once.
    """

    lazy = False

    def __init__(self, model: DistributedDataParallel, ranks: ProcessGroup, records: bool, peers: Peers | None = None) -> None:
        self.records, self.started, self.peers = records, 0, peers
        self.of_ranks: dict[Bucket, list[torch.Tensor]] = {} if peers is None else _bucket_views(model, peers)
        self.graph: torch.cuda.CUDAGraph | None = None
        self.groups = list(reversed(model.bucket_groups))  # DDP's order is that of the backward pass
        self.in_fp8 = [group for group in self.groups if all(map(pays, group.buckets))]
        buckets = [bucket for group in self.in_fp8 for bucket in group.buckets]
        self.fp8 = Fp8Gathers(buckets, ranks, self.of_ranks, peers) if buckets else None
        self.is_stale = False
        self.pending: set[BucketGroup] = set()  # on CPUs: groups that are not gathered yet
        if device.HAS_CUDA:
            self.stream = torch.cuda.Stream()
            self.events = {group: torch.cuda.Event(external=True) for group in self.groups}
        waiting: set[torch.nn.Parameter] = set()
        for module in _units(model):
            # The first module that has a weight waits for it. The whole model comes last and waits for what is left.
            parameters = {one for one in module.parameters() if one.requires_grad} - waiting
            waiting |= parameters
            module.register_forward_pre_hook(self._waiter({model.param_to_bucket_group[p] for p in parameters}))
        assert waiting == set(model.params_with_grad), "frozen weights never change"

    def start(self) -> None:
        """Begin to gather the weights that this rank and the others have updated.

        Call it after the optimizer's step. The gathers wait for all that was launched on the current stream before.
        """
        self.is_stale = self.fp8 is not None
        if not device.HAS_CUDA:
            self._begin()
            self.pending = set(self.groups)
            if not self.lazy:
                self._wait(self.groups)
            return
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            if self.records and self.started == 1:
                graph = self.graph = torch.cuda.CUDAGraph()
                # thread_local: NCCL's watchdog thread may call CUDA meanwhile, which the default mode forbids.
                with torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
                    self._launch()
            if self.graph is None:
                self._launch()
            else:
                self.graph.replay()
        self.started += 1

    def _launch(self) -> None:
        """Gather group after group on the current stream, and record each group's event."""
        self._begin()
        for group in self.groups:
            self._gather(group)
            self.events[group].record()

    def _begin(self) -> None:
        """What comes before the first group."""
        if self.fp8 is not None:
            self.fp8.find()
        if self.peers is not None:
            self.peers.meet()
        if self.fp8 is not None:
            self.fp8.agree()

    def _gather(self, group: BucketGroup) -> None:
        """A group's weights as products read them."""
        if self.fp8 is not None and group in self.in_fp8:
            for bucket in group.buckets:
                self.fp8.gather(bucket)
        else:
            self._gather_whole(group)
            cast_weights(group.params)

    def _gather_whole(self, group: BucketGroup) -> None:
        """A group's weights as they are."""
        if self.peers is None:
            group.start_param_sync()
            return
        for bucket in group.buckets:
            part = bucket.param_data.numel() // self.peers.size
            for rank in self.peers.others(range(self.peers.size)):
                its = slice(rank * part, (rank + 1) * part)
                bucket.param_data[its].copy_(self.of_ranks[bucket][rank][its])

    def close(self) -> None:
        """Let go of the graph, before NCCL's communicator, which it uses, is taken down, and of other ranks' memory."""
        self.graph, self.of_ranks = None, {}
        if self.fp8 is not None:
            self.fp8.close()

    def finish(self) -> None:
        """Wait for all gathers, and gather in bf16 what only was in FP8; every rank calls this.

        Afterwards any code may read the weights: a checkpoint, an evaluation.
        """
        self._wait(self.groups)
        if self.is_stale:
            for group in self.in_fp8:
                self._gather_whole(group)
            self.is_stale = False

    def _waiter(self, groups: Iterable[BucketGroup]) -> Callable[..., None]:
        """A module's forward hook that waits for `groups`, in the order in which they are gathered."""
        ordered = [group for group in self.groups if group in groups]

        def wait(*_: object) -> None:
            self._wait(ordered)

        return wait

    def _wait(self, groups: list[BucketGroup]) -> None:
        """Make the current stream wait for `groups`; on a CPU, gather those that are still pending."""
        if not device.HAS_CUDA:
            for group in groups:
                if group in self.pending:
                    self.pending.remove(group)
                    self._gather(group)
            return
        for group in groups:
            self.events[group].wait()


def _bucket_views(model: DistributedDataParallel, peers: Peers) -> dict[Bucket, list[torch.Tensor]]:
    """Every rank's weights of each bucket."""
    views = {}
    for buffer in model.buffers:
        whole = peers.views(buffer.param_data)
        for bucket in buffer.buckets:
            there = slice(bucket.offset, bucket.offset + bucket.param_data.numel())
            views[bucket] = [data[there] for data in whole]
    return views


def _units(model: DistributedDataParallel) -> Iterable[torch.nn.Module]:
    """The modules that wait, which have every weight among them.

    A forward hook runs only where Python calls a module as one. That holds for the layers, the final norm, the output
    layer and the model itself, whose forward pass begins with the embedding.
    """
    decoder = model.module.decoder
    yield from decoder.layers
    if decoder.final_layernorm is not None:
        yield decoder.final_layernorm
    if model.module.post_process:
        yield model.module.output_layer
    yield model.module
