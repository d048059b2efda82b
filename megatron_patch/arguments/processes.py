"""How many processes a run has and where: DSW's one node, DLC's environment or Kubeflow's. Imports no torch."""

from __future__ import annotations

import functools
import os
import random
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass

from megatron_patch.arguments.gpus import visible_gpus
from megatron_patch.errors import UserError
from megatron_patch.formats.json_files import one_line
from megatron_patch.formats.typed import whole_number
from megatron_patch.llama.divisibility import divisors_of


@dataclass(frozen=True)
class Processes:
    """The processes that torchrun is asked for.

    Attributes:
        nodes, node_rank, per_node: how many nodes, this one's number, and the processes of each.
        master_addr, master_port: where the first node listens.
        max_restarts: how often a run that failed is started again.
    """

    nodes: int
    node_rank: int
    per_node: int
    master_addr: str
    master_port: int
    max_restarts: int = 0

    @property
    def world_size(self) -> int:
        """Processes of all nodes."""
        return self.nodes * self.per_node


# Nodes, this node's index, address and port of the first node.
_DLC = ("WORLD_SIZE", "RANK", "MASTER_ADDR", "MASTER_PORT")
_RESTARTS = 3  # of a DLC job, whose platform's machines come and go
_KUBEFLOW = ("PET_NNODES", "PET_NODE_RANK", "PET_MASTER_ADDR", "PET_MASTER_PORT")


def plan_processes(env: str, model_parallel_size: int, environ: Mapping[str, str] | None = None) -> tuple[Processes, list[str]]:
    """(the processes of a run, findings about the environment variables that decide them).

    dsw: one node, and a process for each visible GPU. Without a GPU GPUS_PER_NODE processes; without that TP × PP
    (`model_parallel_size`).
    dlc: WORLD_SIZE nodes, of which this is number RANK, with MASTER_ADDR and MASTER_PORT. Processes of a node are
    KUBERNETES_CONTAINER_RESOURCE_GPU, else NPROC_PER_NODE, else the visible devices. Without WORLD_SIZE and RANK the
    PET_* variables of Kubeflow Trainer count. In a process that torchrun has started: what torchrun was told, because
    WORLD_SIZE and RANK count processes there.

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
        listens = whole("MASTER_PORT", free_port(), 1, 65535)
        return Processes(1, 0, per_node, "127.0.0.1", listens, whole("MAX_RESTARTS", 0, 0)), findings
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
    findings += _address_findings(addr, environ.get(addr, ""))
    restarts = whole("MAX_RESTARTS", _RESTARTS, 0)
    # The processes of one node meet on it, whether its name can be resolved or not.
    address = environ.get(addr, "") if nodes > 1 else "127.0.0.1"
    return Processes(nodes, rank, per_node, address, whole(port, 29500, 1, 65535), restarts), findings


def _address_findings(name: str, address: str) -> list[str]:
    """What keeps an address from being a host's, whatever a name server says. Whether it can be reached comes later."""
    if re.fullmatch(r"[\w.:%-]{0,253}", address):
        return []
    return [
        f"{name} is '{one_line(address)}'; it must be node 0's host name or address alone, without blanks, slashes or a port."
    ]


def _counts_processes(world_size: int, nodes: str) -> str:
    """The finding about a PyTorchJob whose `nprocPerNode` is a number, by which its operator multiplies WORLD_SIZE."""
    return (
        f"WORLD_SIZE is {world_size} and PET_NNODES {one_line(nodes)}; under dlc both count nodes. "
        "In a Kubeflow PyTorchJob leave nprocPerNode out and set NPROC_PER_NODE in the container's env."
    )


def _whole(environ: Mapping[str, str], findings: list[str], name: str, default: int, minimum: int, most: int = 1 << 20) -> int:
    """The whole number of an environment variable; `default` if it is unset, empty or, with a finding, wrong."""
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
    """The processes of a run, in one of them."""
    nodes, rank, per_node = (int(environ[name]) for name in ("GROUP_WORLD_SIZE", "GROUP_RANK", "LOCAL_WORLD_SIZE"))
    return Processes(nodes, rank, per_node, environ["MASTER_ADDR"], int(environ["MASTER_PORT"]))


def busy_port(processes: Processes) -> str | None:
    """The sentence about a port that was named for this node to listen at, and at which another process listens now."""
    if processes.node_rank or not (os.environ.get("MASTER_PORT") or os.environ.get("PET_MASTER_PORT")):
        return None
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a connection that has just ended is no obstacle
        try:
            probe.bind(("", processes.master_port))
        except OSError:
            return (
                f"MASTER_PORT {processes.master_port} is in use by another process of this node: write another one, the same on "
                "all nodes."
            )
    return None


def free_port() -> int:
    """A TCP port of this machine on which nobody listens now.

    It lies below the range from which the system takes ports for outgoing connections (from 32768 on Linux): one of
    those could take it before torchrun listens. It is drawn at random, so that two runs that start together find
    different ones.

    Raises:
        UserError: none of 100 ports is free.
    """
    for port in random.sample(range(12000, 32000), 100):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise UserError("None of 100 TCP ports between 12000 and 32000 is free; set MASTER_PORT to one that is.")


def processes_finding(processes: Processes, tp: int, pp: int) -> str | None:
    """Why the processes cannot be parted into copies of the model; None where they can."""
    count = processes.world_size
    if count % (tp * pp) == 0:
        return None
    return (
        f"TP × PP = {tp * pp} must divide the {count} processes (nodes × processes per node = {processes.nodes} × "
        f"{processes.per_node}): write ones whose product is one of {divisors_of(count)}, or use more GPUs."
    )
