"""A run's processes and their groups: how they start, their seeds, what a rank knows of itself, and how they end."""

from __future__ import annotations

import megatron_patch.core.device as device

import contextlib
import datetime
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from megatron.core import parallel_state, tensor_parallel

from megatron_patch import errors
from megatron_patch.config import TrainConfig
from megatron_patch.errors import UserError

_T = TypeVar("_T")
_host_group: torch.distributed.ProcessGroup | None = None  # all ranks, over gloo; `start` makes it


@dataclass(frozen=True)
class Layout:
    """Where this process stands among all. Ranks count from 0; sizes are numbers of processes."""

    rank: int
    world_size: int
    device: torch.device
    data_parallel_rank: int
    data_parallel_size: int
    is_first_stage: bool = True  # of the pipeline: it has the embedding
    is_last_stage: bool = True  # it has the head and the loss

    @property
    def is_logger(self) -> bool:
        """Whether this rank writes the log: the last one does, as in Megatron, since it has the loss."""
        return self.rank == self.world_size - 1


def start(config: TrainConfig) -> Layout:
    """Join the process group that torchrun's environment names, build megatron-core's groups, and seed.

    Raises:
        UserError: the number of processes is not a multiple of TP × PP.
    """
    global _host_group
    local = device.local_device()
    timeout = _collective_timeout(config.options.distributed_timeout_minutes)
    if device.HAS_CUDA:
        torch.cuda.set_device(local)
        # autograd accumulates a gradient on the stream that was current when the accumulation was set up, and a CUDA
        # graph cannot record the default stream. So everything runs on another one from the start.
        torch.cuda.set_stream(torch.cuda.Stream())
    torch.distributed.init_process_group(
        backend=device.BACKEND,
        timeout=timeout,
        device_id=local if device.HAS_CUDA else None,
        **_meeting_place(timeout),
    )
    world = torch.distributed.get_world_size()
    model_parallel = config.tensor_model_parallel_size * config.pipeline_model_parallel_size
    if world % model_parallel:
        raise UserError(f"{world} processes were started for TP × PP = {model_parallel}; their number must be a multiple of it.")
    # Ranks agree on things between two steps, such as whether to stop. Over gloo they need not wait for their GPUs.
    _host_group = torch.distributed.new_group(backend="gloo", timeout=timeout)
    with _communicators_at_first_use():
        parallel_state.initialize_model_parallel(
            tensor_model_parallel_size=config.tensor_model_parallel_size,
            pipeline_model_parallel_size=config.pipeline_model_parallel_size,
            distributed_timeout_minutes=int(timeout.total_seconds()) // 60,
        )
    seed_everything(config.options.seed)
    return _layout(local)


def _meeting_place(timeout: datetime.timedelta) -> dict[str, Any]:
    """Where the processes find each other, for `init_process_group`: nothing at the first start, torch does it then.

    After a restart by torchrun its store still holds the addresses of the processes that have ended, and torch would
    find those. So each restart has keys of its own.
    """
    restarts = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    if restarts == "0":
        return {}
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = torch.distributed.TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=timeout)
    ranks = {"rank": int(os.environ["RANK"]), "world_size": int(os.environ["WORLD_SIZE"])}
    return {"store": torch.distributed.PrefixStore(f"start/{restarts}", store), **ranks}


def _collective_timeout(minutes: float) -> datetime.timedelta:
    """How long a collective may wait: longer than `--distributed-timeout-minutes`.

    After those `core/hang_watch.py` says who is waited for. It leaves out what comes before the first step, where a
    rank may prepare data for long.
    """
    return datetime.timedelta(minutes=int(max(minutes * 1.5, minutes + 20)))


@contextlib.contextmanager
def _communicators_at_first_use() -> Iterator[None]:
    """Let the groups that are made inside get their NCCL communicators at their first use.

    core makes more than twenty groups, and a layout never uses most of them. While a device is bound to the group of
    all ranks, torch makes a communicator for each new group at once, and each takes GPU memory: hundreds of megabytes
    together.
    """
    world = torch.distributed.group.WORLD
    assert world is not None, "init_process_group has made it"
    bound, world.bound_device_id = world.bound_device_id, None
    try:
        yield
    finally:
        world.bound_device_id = bound


def _layout(local: torch.device) -> Layout:
    """This process's place, as core's groups and torchrun's environment say it."""
    return Layout(
        rank=torch.distributed.get_rank(),
        world_size=torch.distributed.get_world_size(),
        device=local,
        data_parallel_rank=parallel_state.get_data_parallel_rank(),
        data_parallel_size=parallel_state.get_data_parallel_world_size(),
        is_first_stage=parallel_state.is_pipeline_first_stage(),
        is_last_stage=parallel_state.is_pipeline_last_stage(),
    )


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and torch. Pipeline stages and tensor-parallel ranks get different streams, as in Megatron.

    With equal seeds two stages would initialize their layers alike.
    """
    stage_seed = seed + 100 * parallel_state.get_pipeline_model_parallel_rank()
    random.seed(stage_seed)
    np.random.seed(stage_seed)
    torch.manual_seed(stage_seed)
    tensor_parallel.model_parallel_cuda_manual_seed(stage_seed)


@contextlib.contextmanager
def without_random_streams() -> Iterator[None]:
    """Keep core from switching random streams inside.

    Under sequence parallelism core switches the random stream around its layers, so that ranks drop different elements.
    Switching reads the stream's state, which is an error while a CUDA graph is recorded. LLaMA has no dropout, and that
    of adapters needs no stream.
    """
    tracker = tensor_parallel.get_cuda_rng_tracker()
    tracker.fork = lambda *_: contextlib.nullcontext()
    try:
        yield
    finally:
        del tracker.fork


def rng_state() -> dict[str, object]:
    """The state of all random generators of this process, for a checkpoint.

    It holds tensors, tuples and numbers only, which torch's restricted loader accepts.
    """
    numpy_state = np.random.get_state()
    assert isinstance(numpy_state, tuple), "a dictionary comes where legacy=False asks for it"
    algorithm, keys, position, has_gauss, cached = numpy_state
    return {
        "python": random.getstate(),
        "numpy": (algorithm, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(),
        "tracker": dict(tensor_parallel.get_cuda_rng_tracker().get_states()),
    }


def set_rng_state(state: dict) -> None:
    """Restore the random state that `rng_state` returned."""
    random.setstate(_as_tuple(state["python"]))
    algorithm, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((algorithm, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    torch.cuda.set_rng_state(state["cuda"])
    tensor_parallel.get_cuda_rng_tracker().set_states(state["tracker"])


def _as_tuple(value: Any) -> Any:
    """Lists as tuples, at every depth: Python's generator takes its state as tuples, and a file may hold lists."""
    return tuple(_as_tuple(item) for item in value) if isinstance(value, (list, tuple)) else value


class StageTransfers:
    """What a pipeline stage exchanges with its neighbours.

    Attributes:
        stage, stages: this one's number, from 0, and how many there are.
    """

    def __init__(self) -> None:
        self.stage = parallel_state.get_pipeline_model_parallel_rank()
        self.stages = parallel_state.get_pipeline_model_parallel_world_size()
        self._group = parallel_state.get_pipeline_model_parallel_group()
        self._previous = parallel_state.get_pipeline_model_parallel_prev_rank()
        self._next = parallel_state.get_pipeline_model_parallel_next_rank()

    def exchange(
        self,
        *,
        send_prev: torch.Tensor | None = None,
        recv_prev: torch.Tensor | None = None,
        send_next: torch.Tensor | None = None,
        recv_next: torch.Tensor | None = None,
    ) -> list[torch.distributed.Work]:
        """Start to send and receive these tensors together, as core's schedules do. The host does not wait for the
        device.

        Call `wait` of each returned transfer: what is launched after that runs when the tensors have come and gone. The
        first stage has no neighbour before it and the last none behind it; what they would exchange there is left out.

        Returns:
            Handles to wait for, none if nothing is exchanged; NCCL returns one for all transfers, gloo one for each.
        """
        first, last = self.stage == 0, self.stage == self.stages - 1
        wanted = [
            (torch.distributed.isend, None if first else send_prev, self._previous),
            (torch.distributed.irecv, None if first else recv_prev, self._previous),
            (torch.distributed.isend, None if last else send_next, self._next),
            (torch.distributed.irecv, None if last else recv_next, self._next),
        ]
        transfers = [
            # `.data` hides the write from autograd, which counts changes of a tensor. A recorded backward pass is
            # replayed after many receives into the same memory, and must not be refused for them.
            torch.distributed.P2POp(operation, tensor.data, peer, self._group)
            for operation, tensor, peer in wanted
            if tensor is not None
        ]
        return torch.distributed.batch_isend_irecv(transfers) if transfers else []


def any_rank(here: bool) -> bool:
    """Whether `here` is true on any rank. All ranks call it and get the same answer; no device is asked."""
    flag = torch.tensor([int(here)], dtype=torch.int32)
    torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX, group=_host_group)
    return bool(flag.item())


def from_all_ranks(here: object) -> list:
    """Each rank's object, in the order of ranks; all ranks call it.

    Objects travel pickled. Only the processes of this run exchange them.
    """
    if not torch.distributed.is_initialized():
        return [here]
    gathered: list = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(gathered, here, group=_host_group)
    return gathered


def host_group() -> torch.distributed.ProcessGroup | None:
    """All ranks, over gloo; None before `start`."""
    return _host_group


def rank() -> int:
    """This process's number among all; 0 where there is no group."""
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


def all_or_none(work: Callable[[], _T]) -> _T:
    """What `work` returns, as `errors.all_or_none` has it for all ranks.

    Raises:
        OnEveryRank: a rank may not or cannot.
    """
    return errors.all_or_none(work, from_all_ranks)


def is_first_rank_of_node() -> bool:
    """Whether this process does what is done once a machine."""
    return int(os.environ.get("LOCAL_RANK", "0")) == 0


def barrier() -> None:
    """Wait until all ranks have come here."""
    torch.distributed.barrier()


def stop() -> None:
    """Leave the groups. It does nothing if they were never joined."""
    if torch.distributed.is_initialized():
        global _host_group
        _host_group = None
        parallel_state.destroy_model_parallel()
        torch.distributed.destroy_process_group()
