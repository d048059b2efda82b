"""How many processes a run has and where: DSW's one node, DLC's environment or Kubeflow's. Imports no torch."""

from __future__ import annotations

import functools
import os
import random
import socket
from collections.abc import Mapping
from dataclasses import dataclass

from megatron_patch.arguments.gpus import visible_gpus
from megatron_patch.errors import UserError
from megatron_patch.formats.json_files import one_line
from megatron_patch.formats.typed import whole_number


@dataclass(frozen=True)
class Processes:
    """The layout that torchrun is asked for."""

    nodes: int
    node_rank: int
    per_node: int
    master_addr: str
    master_port: int

    @property
    def world_size(self) -> int:
        return self.nodes * self.per_node


# Nodes, this node's index, address and port of the first node.
_DLC = ("WORLD_SIZE", "RANK", "MASTER_ADDR", "MASTER_PORT")
_KUBEFLOW = ("PET_NNODES", "PET_NODE_RANK", "PET_MASTER_ADDR", "PET_MASTER_PORT")


def plan_processes(env: str, model_parallel_size: int, environ: Mapping[str, str] | None = None) -> tuple[Processes, list[str]]:
    """The processes of a `dsw` or `dlc` run, and what is wrong with the environment that says so.

    dsw: one node, a process for each visible GPU; without a GPU GPUS_PER_NODE, else TP × PP (`model_parallel_size`).
    dlc: WORLD_SIZE nodes, RANK this node's index, MASTER_ADDR and MASTER_PORT; processes per node from
    KUBERNETES_CONTAINER_RESOURCE_GPU, else NPROC_PER_NODE, else the visible devices. Without WORLD_SIZE and RANK: the PET_*
    that Kubeflow Trainer sets.
    In a process that torchrun started: what torchrun was told, for by then WORLD_SIZE and RANK count processes.

    Source of the names: PAI's page "Built-in environment variables"; Kubeflow Trainer's pkg/constants/constants.go.
    """
    environ = os.environ if environ is None else environ
    if "TORCHELASTIC_RUN_ID" in environ and "GROUP_WORLD_SIZE" in environ:
        return _from_torchrun(environ), []
    findings: list[str] = []
    whole = functools.partial(_whole, environ, findings)
    gpus = visible_gpus()
    if env == "dsw":
        per_node = gpus or whole("GPUS_PER_NODE", model_parallel_size, 1)
        return Processes(1, 0, per_node, "127.0.0.1", whole("MASTER_PORT", free_port(), 1, 65535)), findings
    kubeflow = bool(environ.get("PET_NNODES")) and not environ.get("WORLD_SIZE") and not environ.get("RANK")
    names = _KUBEFLOW if kubeflow else _DLC
    missing = [name for name in names if not environ.get(name)]
    if missing:
        findings.append(f"dlc takes {', '.join(missing)} from the environment, which lacks them: write dsw, or run as a DLC job.")
    size, index, addr, port = names
    nodes, rank = whole(size, 1, 1), whole(index, 0, 0)
    if rank >= nodes:
        findings.append(f"{index} is {rank} and {size} {nodes}; under dlc they count nodes, so {index} must be below {size}.")
    if not kubeflow and whole_number(environ.get("PET_NNODES", "")) not in (None, nodes):
        findings.append(_counts_processes(nodes, environ["PET_NNODES"]))
    per_node = whole("NPROC_PER_NODE", gpus or model_parallel_size, 1)
    per_node = whole("KUBERNETES_CONTAINER_RESOURCE_GPU", per_node, 1)
    if kubeflow and environ.get("PET_NPROC_PER_NODE") not in (
        "auto",
        "gpu",
        "cpu",
    ):  # torchrun's words for "as many as there are"
        per_node = whole("PET_NPROC_PER_NODE", per_node, 1)
    return Processes(nodes, rank, per_node, environ.get(addr, ""), whole(port, 29500, 1, 65535)), findings


def _counts_processes(world_size: int, nodes: str) -> str:
    """What to say of a PyTorchJob with a number as `nprocPerNode`: its operator multiplies WORLD_SIZE by it, but not RANK."""
    return (
        f"WORLD_SIZE is {world_size} and PET_NNODES {one_line(nodes)}; under dlc both count nodes. "
        "In a Kubeflow PyTorchJob leave nprocPerNode out and set NPROC_PER_NODE in the container's env."
    )


def _whole(environ: Mapping[str, str], findings: list[str], name: str, default: int, minimum: int, most: int = 1 << 20) -> int:
    """The environment's whole number `name`; `default` where it is unset, empty or, with a finding, anything else."""
    text = environ.get(name)
    if text is None or text == "":
        return default
    value = whole_number(text)
    if value is not None and minimum <= value <= most:
        return value
    got = one_line(text)
    findings.append(f"the environment's {name} is '{got}'; it must be a whole number from {minimum} to {most}, in digits.")
    return default


def _from_torchrun(environ: Mapping[str, str]) -> Processes:
    nodes, rank, per_node = (int(environ[name]) for name in ("GROUP_WORLD_SIZE", "GROUP_RANK", "LOCAL_WORLD_SIZE"))
    return Processes(nodes, rank, per_node, environ["MASTER_ADDR"], int(environ["MASTER_PORT"]))


def free_port() -> int:
    """A TCP port of this machine that nobody listens on now.

    Below the range from which the system takes ports for outgoing connections (32768 on Linux), or one of those could take
    it before torchrun listens; at random, so that two runs that start together do not find the same one.
    """
    for port in random.sample(range(12000, 32000), 100):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise UserError("None of 100 TCP ports between 12000 and 32000 is free; set MASTER_PORT to one that is.")
