"""The arguments of `megatron-patch chat` and `megatron-patch serve`, checked without reading a tensor. Imports no
torch.
"""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from megatron_patch.arguments.argument import Script
from megatron_patch.arguments.command_line import given_texts
from megatron_patch.arguments.findings import Findings
from megatron_patch.arguments.generation import Generation
from megatron_patch.arguments.gpus import visible_gpus
from megatron_patch.arguments.processes import Processes, free_port
from megatron_patch.arguments.serving_list import CHAT, SERVE
from megatron_patch.arguments.trained_model import JobReading, TrainedModel, TrainedModelReader, what_fits
from megatron_patch.errors import UserError
from megatron_patch.folders.checkout import ROOT

# For --api-key, which everyone on the machine reads in the list of processes.
API_KEY = "MEGATRON_PATCH_API_KEY"
_LONGEST = 4096  # tokens of a conversation, unless --length says more
_SAMPLING = ("temperature", "top_k", "top_p", "repetition_penalty", "seed", "template", "system")


@dataclass(frozen=True)
class Serving:
    """A model behind OpenAI's interface.

    Attributes:
        generation: how requests are answered that do not say it themselves.
        queue: requests that may wait.
    """

    generation: Generation
    host: str
    port: int
    api_key: str
    name: str
    queue: int

    @property
    def model(self) -> TrainedModel:
        """The model that is served."""
        return self.generation.model


def read_chat(argv: Sequence[str]) -> JobReading[Generation]:
    """`argv` behind `megatron-patch chat`, checked.

    Raises:
        SystemExit: status 2, after every finding was printed.
    """
    generation, _, processes = _read(CHAT, argv)
    return JobReading(replace(generation, requests=1), processes)


def read_serve(argv: Sequence[str]) -> JobReading[Serving]:
    """`argv` behind `megatron-patch serve`, checked.

    Raises:
        SystemExit: status 2, after every finding was printed.
    """
    generation, value, processes = _read(SERVE, argv)
    name = value["served_model_name"] or Path(os.path.realpath(value["checkpoint"])).name
    job = Serving(generation, value["host"], value["port"], value["api_key"] or os.environ.get(API_KEY, ""), name, value["queue"])
    return JobReading(job, processes)


def _read(script: Script, argv: Sequence[str]) -> tuple[Generation, dict[str, Any], Processes]:
    findings = Findings()
    texts = findings.texts(script, given_texts(script, argv))
    value = findings.values(script.all, texts, what_fits(texts["checkpoint"]))
    value |= {"load": value["checkpoint"], "model_size": "auto", "extra_vocab_size": None, "seq_length": value["length"]}
    value |= {"env": "dsw", "megatron_path": "none", "megatron_patch_path": str(ROOT)}
    if value["precision"] == "auto":
        value["precision"] = "bf16" if visible_gpus() else "fp32"
    reader = TrainedModelReader(script, value, findings, flags={"--load": "", "--seq-length": "--length"})
    model = reader.model()
    longest = value["length"] or min(_LONGEST, reader.position_limit or _LONGEST)
    answer = min(value["max_new_tokens"], longest - 1)
    if "host" in value:
        if problem := _host_problem(value["host"]):
            reader.problem("--host", problem)
        elif not findings.is_about(reader.argument("--port")) and (problem := _port_problem(value["host"], value["port"])):
            reader.problem("--port", problem)
    findings.exit_if_any(script.name)
    assert model is not None, "a finding ends the process"
    generation = Generation(
        model=model,
        requests=value.get("requests", 1),
        prompt_length=longest - answer,
        answer_length=answer,
        input_file=None,
        output_file=Path("-"),
        stop=(),
        **{name: value[name] for name in _SAMPLING},
    )
    return generation, value, _processes(model.tensor_model_parallel_size * model.pipeline_model_parallel_size)


def _processes(count: int) -> Processes:
    """One copy of the model on this machine; in a process that torchrun started, what torchrun was told."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return Processes(1, 0, count, os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
    gpus = visible_gpus()
    if gpus and count > gpus:
        raise UserError(f"TP × PP is {count} and this machine has {gpus} visible GPUs; write smaller ones.")
    return Processes(1, 0, count, "127.0.0.1", free_port())


def _host_problem(host: str) -> str | None:
    """Why nobody can listen there, as far as the text tells."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        if host == "localhost":
            return None
        return "it takes an address of this machine: write 127.0.0.1, or 0.0.0.0 for everyone who reaches it."
    return None


def _port_problem(host: str, port: int) -> str | None:
    """Why nobody can listen there now, found before minutes of reading weights."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        return f"nobody can listen there at {host} ({error.strerror}): write another --port, or --host."
    return None
