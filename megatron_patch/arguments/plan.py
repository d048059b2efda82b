"""The arguments of `megatron-patch plan`, up to the shape of a run. Imports no torch."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_patch.arguments.command_line import given_texts
from megatron_patch.arguments.findings import Findings
from megatron_patch.arguments.gpus import find_driver, lacks_fp8
from megatron_patch.arguments.plan_list import PLAN
from megatron_patch.arguments.processes import Processes, processes_finding
from megatron_patch.errors import UserError
from megatron_patch.formats.peft_adapter import LoraConfig
from megatron_patch.llama.divisibility import (
    fp8_layers_finding,
    fp8_tokens_finding,
    fp8_width_finding,
    layout_findings,
    split_finding,
)
from megatron_patch.llama.model_config import LLAMA_SIZES, TRAINING_SIZES, LlamaConfig, read_hf_config
from megatron_patch.llama.position_limit import length_finding, with_positions
from megatron_patch.plan.fitting import GPUS, Gpu, of_this_machine
from megatron_patch.plan.memory import RunShape

_FLAGS = {"TP": "--tensor-model-parallel-size", "PP": "--pipeline-model-parallel-size"}
_GLOBAL_BATCH = next(one for one in PLAN.flags if one.flag == "--global-batch-size")
_MICRO_BATCHES = 8  # of a replica, where no global batch is named


def read_plan(argv: Sequence[str]) -> tuple[RunShape, Gpu, int, int]:
    """The run, the GPU, GPUs of a node and nodes that `argv` describes.

    Raises:
        SystemExit: status 2, after every finding was printed.
    """
    findings = Findings()
    texts = findings.texts(PLAN, given_texts(PLAN, argv))
    value = findings.values((one for one in PLAN.all if one is not _GLOBAL_BATCH), texts)
    model = _model(value["model"], findings)
    tp, pp, micro = (value[name] for name in ("tensor_model_parallel_size", "pipeline_model_parallel_size", "micro_batch_size"))
    gpu, own = (GPUS[value["gpu"]], 1) if value["gpu"] else _this_machine()
    processes = Processes(value["nodes"], 0, value["gpus"] or own, "", 0)
    known = None if findings.is_about(PLAN.documented[0]) else model
    if known:
        rows = model.vocab_size + value["extra_vocab_size"]
        for name, problem in layout_findings(model, tp, pp, rows, processes.world_size):
            findings.add_flag(_FLAGS[name], tp if name == "TP" else pp, problem)
    undivided = processes_finding(processes, tp, pp)
    if undivided and not any(map(findings.is_about_flag, _FLAGS.values())):
        findings.add_flag(_FLAGS["TP"], tp, undivided)
    replicas = max(1, processes.world_size // (tp * pp))
    usual = _MICRO_BATCHES * (step := micro * replicas)
    samples = findings.values([_GLOBAL_BATCH], texts, {_GLOBAL_BATCH.dest: usual})[_GLOBAL_BATCH.dest] or usual
    if samples % step and not findings.is_about(_GLOBAL_BATCH):
        problem = f"it must be a multiple of {micro} × {replicas} replicas: write {max(step, samples - samples % step)}."
        findings.add(_GLOBAL_BATCH, samples, problem)
    _check_kinds(value, gpu, findings)
    _check_rows(value, known, findings)
    findings.exit_if_any(PLAN.name)
    run = RunShape(
        model=with_positions(model, value["seq_length"])[0],
        extra_vocab_size=value["extra_vocab_size"],
        precision=value["precision"],
        sample_length=value["seq_length"],
        micro_batch_size=micro,
        micro_batches=samples // step,
        data_parallel_size=replicas,
        tensor_model_parallel_size=tp,
        pipeline_model_parallel_size=pp,
        sequence_parallel=value["sequence_parallel"] and tp > 1,
        use_distributed_optimizer=value["use_distributed_optimizer"],
        use_flash_attn=value["use_flash_attn"],
        recompute=value["activation_checkpoint"],
        lora=_lora(value["lora_rank"], value["extra_vocab_size"], value["qlora"]),
        fp8_layers=value["fp8_layers"],
    )
    return run, gpu, processes.per_node, value["nodes"]


def _check_kinds(value: Mapping[str, Any], gpu: Gpu, findings: Findings) -> None:
    """Look whether there is such a training."""
    if value["precision"] == "fp8" and not gpu.has_fp8:
        findings.add_flag("--precision", "fp8", f"an {gpu.name} has no FP8 tensor cores: write bf16.")
    if value["qlora"] and not value["lora_rank"]:
        wanted = "it is for LoRA, which --lora-rank turns on: write --lora-rank 16 too, or remove the flag."
        findings.add_flag("--qlora", "true", wanted)
    elif value["precision"] == "fp8" and value["qlora"]:
        findings.add_flag("--qlora", "true", "weights in 4 bits have no FP8 products: write bf16, or remove the flag.")


def _check_rows(value: Mapping[str, Any], model: LlamaConfig | None, findings: Findings) -> None:
    """Look whether the runs' own checks take SEQ_LEN and fp8; without a model, those that need none."""
    tp, length = value["tensor_model_parallel_size"], value["seq_length"]
    fits_tp = not findings.is_about_flag(_FLAGS["TP"])
    split = tp if value["sequence_parallel"] and fits_tp else 1
    in_fp8 = value["precision"] == "fp8"
    if in_fp8 and model and fits_tp and (problem := fp8_width_finding(model, tp)):
        findings.add_flag("--precision", "fp8", problem)
    if in_fp8 and model and (problem := fp8_layers_finding(model, value["fp8_layers"])):
        findings.add_flag("--fp8-layers", value["fp8_layers"], problem)
    problem = split_finding(length, split)
    if in_fp8 and not problem and not findings.is_about_flag("--micro-batch-size"):
        problem = fp8_tokens_finding(length, value["micro_batch_size"], split)
    if model and not problem and not value["allow_longer_sequences"]:
        problem = length_finding(model, length)
    if problem and not findings.is_about_flag("--seq-length"):
        findings.add_flag("--seq-length", length, problem)


def _lora(rank: int, extra_vocab_size: int, quantizes: bool) -> LoraConfig | None:
    """LoRA on all linear layers; with new rows of vocabulary these are trained too."""
    saved = ("embed_tokens", "lm_head") if extra_vocab_size else ()
    return LoraConfig(rank, 2.0 * rank, saved=saved, quantizes=quantizes) if rank else None


def _this_machine() -> tuple[Gpu, int]:
    """This machine's GPU and how many are visible; one H200 where there is none."""
    driver = find_driver()
    known = driver.gpus and driver.name and driver.memory
    return (of_this_machine(driver.name, driver.memory, not lacks_fp8(driver)), driver.gpus) if known else (GPUS["h200"], 1)


def _model(text: str, findings: Findings) -> LlamaConfig:
    """The model of a size or of a folder's config.json; a finding, and the tiny one, where it is neither."""
    if text in TRAINING_SIZES:
        return LLAMA_SIZES[TRAINING_SIZES[text]]
    try:
        if not os.path.isdir(text):
            raise UserError(f"it is neither a size nor a folder: write one of {', '.join(TRAINING_SIZES)}, or a folder's path.")
        return read_hf_config(Path(text))
    except UserError as error:
        findings.add(PLAN.documented[0], text, str(error))
        return LLAMA_SIZES["tiny"]
