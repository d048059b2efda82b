"""Memory of the other GPUs of one host, read by copy engines. They take no multiprocessor from the kernels that run.

With `--peer-copies false` NCCL communicates.

NCCL's kernels take some from the matrix products that run at the same time. On four H200s, tensor parallel, the
backward pass of a 7B model's first feed-forward product takes 595 µs without communication, 775 µs beside NCCL's
kernels and 614 µs beside copies. tensor_exchange.py, weight_gathers.py and gradient_reductions.py communicate through
`Peers`. Where ranks are not `Peers`, NCCL communicates.

Memory is opened through CUDA's handles for other processes, as torch.multiprocessing does it, but on the reader's own
GPU: a context on each of the other GPUs would take half a gigabyte. Ranks meet through the barrier kernel of PyTorch's
symmetric memory, which a CUDA graph can record.
"""

from __future__ import annotations

import megatron_patch.core.device as device

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import distributed
from torch.distributed import ProcessGroup

from megatron_patch.core import parallel

_open: dict[ProcessGroup, Peers] = {}
on_cpus = False  # tests let processes on CPUs read each other's memory too


class Side:
    """A stream beside the current one. On a CPU everything is done at once."""

    def __init__(self) -> None:
        # Its priority is higher: its kernels are short, and products have thousands of blocks waiting to be launched.
        self.stream = torch.cuda.Stream(priority=-1) if device.HAS_CUDA else None

    @contextlib.contextmanager
    def after(self) -> Iterator[None]:
        """What is launched inside runs beside the current stream, after all that was launched on either before."""
        if self.stream is None:
            yield
            return
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            yield

    def mark(self) -> torch.cuda.Event | None:
        """Inside `after`: what was launched until now."""
        return None if self.stream is None else torch.cuda.current_stream().record_event()

    def join(self, mark: torch.cuda.Event | None = None) -> None:
        """The current stream goes on after all that was launched beside it, or after what `mark` says."""
        if self.stream is None:
            return
        if mark is not None:
            torch.cuda.current_stream().wait_event(mark)
        else:
            torch.cuda.current_stream().wait_stream(self.stream)


class Peers:
    """The ranks of a group, whose memory each of them can read.

    Attributes:
        rank, size: this one's number in the group, from 0, and how many there are.
    """

    def __init__(self, group: ProcessGroup) -> None:
        self.group, self.rank, self.size = group, group.rank(), group.size()
        self._meeting = _meeting_place(group) if device.HAS_CUDA else None

    def meet(self, place: int = 0) -> None:
        """Let what is launched on the current stream from here on run after what all ranks launched before they meet.

        Streams that do not wait for each other meet at different places.
        """
        if self._meeting is None:
            distributed.barrier(group=self.group)
        else:
            self._meeting.barrier(place)

    def views(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        """Every rank's `tensor`, in the order of ranks; each rank calls this, with one as large."""
        handles: list[Any] = [None] * self.size
        distributed.all_gather_object(handles, _handle(tensor.detach()), group=self.group)
        return [tensor.detach() if rank == self.rank else _opened(handle) for rank, handle in enumerate(handles)]

    def others(self, ranks: range) -> list[int]:
        """Those of `ranks` but this one, in an order in which not all ranks read from the same one at the same time."""
        first = self.rank % max(len(ranks), 1)
        return [rank for rank in (*ranks[first:], *ranks[:first]) if rank != self.rank]


def _meeting_place(group: ProcessGroup) -> Any:
    # Multicast objects are few in a host's switches, and a barrier has no use for one.
    os.environ.setdefault("TORCH_SYMM_MEM_DISABLE_MULTICAST", "1")
    from torch.distributed import _symmetric_memory as symmetric

    return symmetric.rendezvous(symmetric.empty(1, dtype=torch.int32, device=device.local_device()), group)


def _handle(tensor: torch.Tensor) -> Any:
    if tensor.is_cuda:
        from torch.multiprocessing.reductions import reduce_tensor

        return reduce_tensor(tensor)[1]
    manager, name, size = tensor.untyped_storage()._share_filename_cpu_()
    return manager, name, size, tensor.dtype, tensor.storage_offset(), tensor.shape, tensor.stride()


def _opened(handle: Any) -> torch.Tensor:
    if device.HAS_CUDA:
        from torch.multiprocessing.reductions import rebuild_cuda_tensor

        arguments = list(handle)
        arguments[6] = device.local_device().index  # `storage_device`, where the memory is to be seen
        return rebuild_cuda_tensor(*arguments)
    manager, name, size, dtype, offset, shape, stride = handle
    storage = torch.UntypedStorage._new_shared_filename_cpu(manager, name, size)
    return torch.empty(0, dtype=dtype).set_(storage, offset, shape, stride)


def open_groups(groups: dict[str, ProcessGroup]) -> str:
    """Try to read each other's memory in these groups, by what they are called. Every rank calls this at the same time.

    Returns:
        A phrase for the log: which groups do, and why the others do not; empty without groups of several ranks.
    """
    said = []
    for name, group in groups.items():
        if group.size() > 1:
            reason = _try(group)
            if reason:
                _open.pop(group, None)
            said.append(f"{name}: NCCL ({reason})" if reason else f"{name}: copy engines")
    return ", ".join(said)


def peers_of(group: ProcessGroup | None) -> Peers | None:
    """Of a group that `open_groups` has opened; else None."""
    return None if group is None else _open.get(group)


def close() -> None:
    """Let go of what belongs to other ranks, before they end."""
    _open.clear()
    if device.HAS_CUDA:
        torch.cuda.ipc_collect()


def _try(group: ProcessGroup) -> str:
    """Open the group, and read from each of the others what it should hold.

    Returns:
        Why any rank cannot; empty if all can.
    """
    views: list[torch.Tensor] = []
    numbers = torch.full((1024,), group.rank(), dtype=torch.int32, device=device.local_device())

    def join() -> None:
        _open[group] = Peers(group)

    def look() -> None:
        views.extend(_open[group].views(numbers))

    def read() -> None:
        _open[group].meet()
        if not all(bool((view == rank).all()) for rank, view in enumerate(views)):
            raise RuntimeError("what is read from another GPU's memory is wrong")

    reason = _anywhere(_obstacle(group))
    for step in join, look, read:  # all ranks take one, or none takes the next: a rank alone would wait for the others
        reason = reason or _anywhere(_error(step))
    return reason


def _anywhere(reason: str) -> str:
    return next(filter(None, parallel.from_all_ranks(reason)), "")


def _error(step: Callable[[], None]) -> str:
    try:
        step()
    except RuntimeError as error:
        return str(error).strip().splitlines()[0]
    return ""


def _obstacle(group: ProcessGroup) -> str:
    """What can be known without trying."""
    if not device.HAS_CUDA:
        return "" if on_cpus else "there is no GPU"
    ranks, here = distributed.get_process_group_ranks(group), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if len({rank // here for rank in ranks}) > 1:
        return "several nodes"
    if torch.cuda.device_count() < here:
        return "a process does not see the others' GPUs"
    mine = device.local_device().index
    others = [rank % here for rank in ranks if rank % here != mine]
    return "" if all(torch.cuda.can_device_access_peer(mine, other) for other in others) else "no access from GPU to GPU"
