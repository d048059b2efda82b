"""How many processes a run has and where: DSW's one node, DLC's environment. Imports no torch."""

from __future__ import annotations

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


def plan_processes(env: str, model_parallel_size: int, environ: Mapping[str, str] | None = None) -> tuple[Processes, list[str]]:
    """The processes of a `dsw` or `dlc` run, and what is wrong with the environment that says so.

    dsw: one node, a process for each visible GPU; without a GPU GPUS_PER_NODE, else TP × PP (`model_parallel_size`).
    dlc: WORLD_SIZE nodes, RANK this node's index, MASTER_ADDR and MASTER_PORT; processes per node from
    KUBERNETES_CONTAINER_RESOURCE_GPU, else NPROC_PER_NODE, else the visible devices.
    In a process that torchrun started: what torchrun was told, for by then WORLD_SIZE and RANK count processes.
    """
    environ = os.environ if environ is None else environ
    if "TORCHELASTIC_RUN_ID" in environ and "GROUP_WORLD_SIZE" in environ:
        return _from_torchrun(environ), []
    findings: list[str] = []

    def whole(name: str, default: int, minimum: int, most: int = 1 << 20) -> int:
        text = environ.get(name)
        if text is None or text == "":
            return default
        value = whole_number(text)
        if value is not None and minimum <= value <= most:
            return value
        got = one_line(text)
        findings.append(f"the environment's {name} is '{got}'; it must be a whole number from {minimum} to {most}, in digits.")
        return default

    gpus = visible_gpus()
    if env == "dsw":
        per_node = gpus or whole("GPUS_PER_NODE", model_parallel_size, 1)
        return Processes(1, 0, per_node, "127.0.0.1", whole("MASTER_PORT", free_port(), 1, 65535)), findings
    missing = [name for name in ("WORLD_SIZE", "RANK", "MASTER_ADDR", "MASTER_PORT") if not environ.get(name)]
    if missing:
        findings.append(f"dlc takes {', '.join(missing)} from the environment, which lacks them: write dsw, or run as a DLC job.")
    nodes, rank = whole("WORLD_SIZE", 1, 1), whole("RANK", 0, 0)
    if rank >= nodes:
        findings.append(f"RANK is {rank} and WORLD_SIZE {nodes}; under dlc they count nodes, so RANK must be below WORLD_SIZE.")
    per_node = whole("NPROC_PER_NODE", gpus or model_parallel_size, 1)
    per_node = whole("KUBERNETES_CONTAINER_RESOURCE_GPU", per_node, 1)
    return Processes(nodes, rank, per_node, environ.get("MASTER_ADDR", ""), whole("MASTER_PORT", 29500, 1, 65535)), findings


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
