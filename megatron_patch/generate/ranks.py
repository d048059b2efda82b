"""Which part of the model, and which requests, a process has. Knows no megatron-core, whose groups are for training."""

from __future__ import annotations

import datetime
import os
import signal
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from megatron_patch.errors import UserError
from megatron_patch.processes.parents import end_with_torchrun

# Hours that a process waits for another: a replica whose share was shorter for the others, and all for somebody who
# types. torchrun itself ends those whose partner has ended.
_PATIENCE = 7 * 24


@dataclass(frozen=True)
class Ranks:
    """One process. A replica is TP × PP processes with one copy of the model; replicas answer different requests.

    Attributes:
        tensor, tensor_size: this rank among those that share each weight.
        stage, stages: this one's place in the pipeline.
        replica, replicas: which copy of the model this process belongs to.
        tensor_group, replica_group: of the processes that share weights, and of the whole replica; None where there
            is one.
        previous, following: global ranks of the neighbouring stages.
        first: global rank of the replica's first process, which reads and writes.
        last: global rank of the process whose choice of tokens the replica follows.
    """

    device: torch.device
    tensor: int = 0
    tensor_size: int = 1
    stage: int = 0
    stages: int = 1
    replica: int = 0
    replicas: int = 1
    tensor_group: dist.ProcessGroup | None = None
    replica_group: dist.ProcessGroup | None = None
    previous: int = 0
    following: int = 0
    first: int = 0
    last: int = 0

    @property
    def is_first_stage(self) -> bool:
        """Whether it has the embedding."""
        return self.stage == 0

    @property
    def is_last_stage(self) -> bool:
        """Whether it has the output layer."""
        return self.stage == self.stages - 1

    @property
    def speaks(self) -> bool:
        """Whether this process writes its replica's answers."""
        return self.tensor == 0 and self.is_first_stage

    def from_all(self, here: Any) -> list[Any]:
        """Each process's object, of all replicas, in the order of their global ranks."""
        if not dist.is_initialized():
            return [here]
        gathered: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(gathered, here)
        return gathered

    def reduce(self, numbers: torch.Tensor) -> torch.Tensor:
        """Summed over the ranks that share the weights, in place."""
        if self.tensor_group is not None:
            dist.all_reduce(numbers, group=self.tensor_group)
        return numbers

    def gather_columns(self, part: torch.Tensor) -> torch.Tensor:
        """[B, C] of each rank that shares the weights, beside each other: [B, tensor_size · C]."""
        if self.tensor_group is None:
            return part
        parts = [torch.empty_like(part) for _ in range(self.tensor_size)]
        dist.all_gather(parts, part.contiguous(), group=self.tensor_group)
        return torch.cat(parts, dim=-1)

    def from_last(self, tokens: torch.Tensor) -> torch.Tensor:
        """What the replica's last stage has chosen, in place, on every process of the replica."""
        if self.replica_group is not None:
            dist.broadcast(tokens, self.last, group=self.replica_group)
        return tokens

    def from_first(self, text: str | None) -> str | None:
        """What the replica's first process says, on every process of it; None for the end of what it has to say."""
        if self.replica_group is None:
            return text
        said = b"" if text is None else b"+" + text.encode("utf-8", "surrogateescape")
        size = torch.tensor([len(said)], device=self.device)
        dist.broadcast(size, self.first, group=self.replica_group)
        content = torch.zeros(int(size), dtype=torch.uint8, device=self.device)
        if self.speaks:
            content.copy_(torch.frombuffer(bytearray(said), dtype=torch.uint8) if said else content)
        dist.broadcast(content, self.first, group=self.replica_group)
        heard = content.cpu().numpy().tobytes()
        return heard[1:].decode("utf-8", "surrogateescape") if heard else None


def alone(device: torch.device | str) -> Ranks:
    """One process with the whole model."""
    return Ranks(torch.device(device))


def join(tensor_size: int, stages: int) -> Ranks:
    """Join the processes that torchrun started. Ranks count tensor-parallel ranks first, then replicas, then stages.

    From then on Ctrl-C ends a process at once. As an exception it would have to wait for the process to come back from
    a collective, in which the others, already gone, leave it.

    Raises:
        UserError: the number of processes is no multiple of TP × PP.
    """
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if int(os.environ.get("WORLD_SIZE", "1")) == tensor_size * stages == 1:
        return alone(device)
    end_with_torchrun()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=datetime.timedelta(hours=_PATIENCE))
    rank, world = dist.get_rank(), dist.get_world_size()
    if world % (tensor_size * stages):
        product = tensor_size * stages
        raise UserError(f"{world} processes were started for TP × PP = {product}; their number must be a multiple of it.")
    return _grouped(device, rank, tensor_size, stages, world // (tensor_size * stages))


def _grouped(device: torch.device, rank: int, tensor_size: int, stages: int, replicas: int) -> Ranks:
    """This rank with its groups. Every process calls it, and makes every group."""
    timeout = datetime.timedelta(hours=_PATIENCE)
    tensor, replica, stage = rank % tensor_size, rank // tensor_size % replicas, rank // (tensor_size * replicas)

    def number(tensor: int, replica: int, stage: int) -> int:
        return tensor + tensor_size * (replica + replicas * stage)

    # In one order; NCCL's communicators come with the first use.
    tensor_groups = {
        (one, part): dist.new_group([number(t, one, part) for t in range(tensor_size)], timeout=timeout)
        for one in range(replicas)
        for part in range(stages)
    }
    replica_groups = [
        dist.new_group([number(t, one, part) for part in range(stages) for t in range(tensor_size)], timeout=timeout)
        for one in range(replicas)
    ]
    return Ranks(
        device=device,
        tensor=tensor,
        tensor_size=tensor_size,
        stage=stage,
        stages=stages,
        replica=replica,
        replicas=replicas,
        tensor_group=tensor_groups[replica, stage] if tensor_size > 1 else None,
        replica_group=replica_groups[replica] if tensor_size * stages > 1 else None,
        previous=number(tensor, replica, stage - 1) if stage else rank,
        following=number(tensor, replica, stage + 1) if stage < stages - 1 else rank,
        first=number(0, replica, 0),
        last=number(0, replica, stages - 1),
    )


def leave() -> None:
    """End what `join` began; nothing where there is one process."""
    if dist.is_initialized():
        dist.destroy_process_group()
