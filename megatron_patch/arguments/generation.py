"""Text generation's arguments, checked as far as they can be without reading a tensor. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_patch.arguments.command_line import given_texts
from megatron_patch.arguments.divisibility import layout_findings
from megatron_patch.arguments.findings import Findings
from megatron_patch.arguments.generation_list import GENERATE
from megatron_patch.arguments.processes import Processes, plan_processes
from megatron_patch.errors import UserError
from megatron_patch.folders.checkout import checkout_problem
from megatron_patch.folders.hugging_face_folder import find_weights, is_hf_folder, is_meta_folder
from megatron_patch.folders.layout import CheckpointLocation, read_model_description, resolve_checkpoint
from megatron_patch.folders.names import holds_tokenizer
from megatron_patch.formats.typed import path_problem, unwritable
from megatron_patch.llama.model_config import LLAMA_SIZES, TRAINING_SIZES, LlamaConfig, read_hf_config, shape_differences

ARGUMENTS = GENERATE.by_name
NONE = "none"
# Fields that are an argument's value as it is, under the flag's name.
_UNCHANGED = ("temperature", "top_k", "top_p", "repetition_penalty", "seed", "template", "system", "gqa_layout")


@dataclass(frozen=True)
class Generation:
    """One run of text generation. Lengths are tokens.

    Attributes:
        input_file: None opens a prompt on the terminal.
        fallback: the model that MODEL_SIZE names, for what a checkpoint without config.json does not record; None for `auto`.
    """

    checkpoint: Path
    tokenizer: Path
    fallback: LlamaConfig | None
    precision: str
    tensor_model_parallel_size: int
    pipeline_model_parallel_size: int
    requests: int
    prompt_length: int
    answer_length: int
    input_file: Path | None
    output_file: Path
    temperature: float
    top_k: int
    top_p: float
    repetition_penalty: float
    seed: int
    template: str
    system: str
    stop: tuple[str, ...]
    gqa_layout: str


@dataclass(frozen=True)
class Reading:
    """What the arguments come to."""

    job: Generation
    processes: Processes
    notes: tuple[str, ...]


def read(argv: Sequence[str]) -> Reading:
    """`argv` as the script writes it, checked.

    Raises:
        SystemExit: status 2, after every finding was printed.
    """
    findings = Findings()
    texts = findings.refuse_line_ends(GENERATE, given_texts(GENERATE, argv))
    value = findings.values(GENERATE.all, texts)
    tp, pp = value["tensor_model_parallel_size"], value["pipeline_model_parallel_size"]
    processes, problems = plan_processes(value["env"], tp * pp)
    for problem in problems:
        findings.add(ARGUMENTS["ENV"], value["env"], problem)
    _check_numbers(value, processes, findings)
    if problem := checkout_problem(value["megatron_patch_path"]):
        findings.add(ARGUMENTS["MEGATRON_PATCH_PATH"], value["megatron_patch_path"], problem)
    root = None if path_problem(value["load"]) else _check_checkpoint(value, findings)
    tokenizer = _tokenizer(value, root, findings)
    _check_files(value, findings)
    findings.exit_if_any(GENERATE.name)
    assert root is not None and tokenizer is not None, "a finding ends the process"
    unused = value["megatron_path"] not in ("", NONE)
    notes = ("MEGATRON_PATH is not used: text generation has a decoder of its own.",) if unused else ()
    return Reading(_job(value, tokenizer), processes, notes)


def _job(value: dict[str, Any], tokenizer: Path) -> Generation:
    size = TRAINING_SIZES.get(value["model_size"])
    return Generation(
        checkpoint=Path(value["load"]),
        tokenizer=tokenizer,
        fallback=LLAMA_SIZES[size] if size else None,
        precision=value["precision"],
        tensor_model_parallel_size=value["tensor_model_parallel_size"],
        pipeline_model_parallel_size=value["pipeline_model_parallel_size"],
        requests=value["micro_batch_size"],
        prompt_length=value["input_len"],
        answer_length=value["out_seq_length"],
        input_file=None if value["text_generate_input_file"] == NONE else Path(value["text_generate_input_file"]),
        output_file=Path(value["text_generate_output_file"]),
        stop=value["stop"] or (),
        **{name: value[name] for name in _UNCHANGED},
    )


def _check_numbers(value: dict[str, Any], processes: Processes, findings: Findings) -> None:
    tp, pp = value["tensor_model_parallel_size"], value["pipeline_model_parallel_size"]
    if processes.world_size % (tp * pp):
        problem = (
            f"TP × PP = {tp * pp} must divide the {processes.world_size} processes "
            f"({processes.nodes} nodes of {processes.per_node}): write smaller ones, or use more GPUs."
        )
        findings.add(ARGUMENTS["TP"], tp, problem)
    lengths = [ARGUMENTS[name] for name in ("SEQ_LEN", "INPUT_SEQ_LEN", "OUTPUT_SEQ_LEN")]
    needed = value["input_len"] + value["out_seq_length"]
    if needed > value["seq_length"] and not any(findings.is_about(one) for one in lengths):
        problem = f"it must hold INPUT_SEQ_LEN + OUTPUT_SEQ_LEN = {needed} tokens: write {needed} or more."
        findings.add(ARGUMENTS["SEQ_LEN"], value["seq_length"], problem)


def _check_checkpoint(value: dict[str, Any], findings: Findings) -> Path | None:
    """The folder with config.json and tokenizer; None where CHECKPOINT_PATH cannot be used."""
    try:
        root, model, extra = _model(Path(value["load"]))
    except UserError as error:
        findings.add(ARGUMENTS["CHECKPOINT_PATH"], value["load"], str(error))
        return None
    size = TRAINING_SIZES.get(value["model_size"])
    differences = shape_differences(LLAMA_SIZES[size], model) if size and model else []
    if differences:
        problem = f"the checkpoint's config.json disagrees ({'; '.join(differences)}): write auto, or another checkpoint."
        findings.add(ARGUMENTS["MODEL_SIZE"], value["model_size"], problem)
    if model is not None:
        tp, pp = value["tensor_model_parallel_size"], value["pipeline_model_parallel_size"]
        for name, problem in layout_findings(model, tp, pp, model.vocab_size + extra):
            if name == "TP":
                findings.add(ARGUMENTS["TP"], tp, problem)
            else:
                findings.add_flag("--pipeline-model-parallel-size", pp, problem)
        limit = math.floor(model.position_limit)
        if value["seq_length"] > limit and not findings.is_about(ARGUMENTS["SEQ_LEN"]):
            problem = f"the model is made for {limit} positions: write {limit} or less."
            findings.add(ARGUMENTS["SEQ_LEN"], value["seq_length"], problem)
    if extra != value["extra_vocab_size"] and model is not None and not findings.is_about(ARGUMENTS["EXTRA_VOCAB_SIZE"]):
        findings.add(ARGUMENTS["EXTRA_VOCAB_SIZE"], value["extra_vocab_size"], f"the checkpoint has {extra}: write {extra}.")
    return root


def _model(path: Path) -> tuple[Path, LlamaConfig | None, int]:
    """(folder with the tokenizer, the model, its extra rows); the model is None where only the weights' own files tell it."""
    if is_meta_folder(path):
        return path, None, 0
    if is_hf_folder(path):
        find_weights(path)
        return path, read_hf_config(path), 0
    location: CheckpointLocation = resolve_checkpoint(path)
    if location.kind != "native":
        return location.root, None, 0
    described = read_model_description(location)
    if described is not None:
        return location.root, described.model, described.extra_vocab_size
    return location.root, read_hf_config(location.root), 0


def _tokenizer(value: dict[str, Any], root: Path | None, findings: Findings) -> Path | None:
    """The tokenizer's folder; a finding where it is none."""
    given = value["tokenizer_path"]
    folder = Path(given) if given else root
    if folder is None or holds_tokenizer(folder):
        return folder
    problem = f"{folder} holds neither tokenizer.model nor tokenizer.json: write --tokenizer-path and the folder that does."
    if given:
        findings.add_flag("--tokenizer-path", given, problem)
    else:
        findings.add(ARGUMENTS["CHECKPOINT_PATH"], value["load"], problem)
    return None


def _check_files(value: dict[str, Any], findings: Findings) -> None:
    text = value["text_generate_input_file"]
    if text == NONE:
        return
    if not path_problem(text) and not Path(text).is_file():
        problem = "there is no such file: write the path of a file of JSON Lines with query, or none."
        findings.add(ARGUMENTS["INPUT_FILE"], text, problem)
    output = value["text_generate_output_file"]
    if path_problem(output):
        return
    argument = ARGUMENTS["OUTPUT_FILE"]
    if not output or Path(output).is_dir():
        findings.add(argument, output, "it takes the path of a file: write one.")
    elif problem := unwritable(str(Path(output).parent)):
        findings.add(argument, output, problem)
    elif Path(output).resolve() == Path(text).resolve():
        findings.add(argument, output, "it is INPUT_FILE: write another path.")
