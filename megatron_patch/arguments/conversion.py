"""The converter's documented arguments and flags, checked as far as that reads no tensor. Imports no torch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_patch.arguments.command_line import Texts, given_texts
from megatron_patch.arguments.conversion_list import CONVERT, DEFAULT_FILE_BYTES
from megatron_patch.arguments.findings import Findings
from megatron_patch.config import ALL_Q_FIRST, PER_KV_HEAD
from megatron_patch.errors import UserError
from megatron_patch.folders.adapter_base import base_of, find_adapter
from megatron_patch.folders.atomic_folder import target_finding
from megatron_patch.folders.hugging_face_folder import (
    find_weights,
    is_hf_folder,
    is_meta_folder,
    meta_companions,
    snapshot_finding,
)
from megatron_patch.folders.layout import (
    COMPANIONS,
    CheckpointLocation,
    read_model_description,
    resolve_checkpoint,
)
from megatron_patch.folders.trained_form import base_layout, read_form
from megatron_patch.formats.peft_adapter import read_config
from megatron_patch.formats.placeholders import refuse_placeholders
from megatron_patch.formats.typed import path_problem, unwritable
from megatron_patch.llama.divisibility import layout_findings
from megatron_patch.llama.model_config import LLAMA_SIZES, LlamaConfig, read_hf_config, shape_differences

SCRIPT = CONVERT.name
ARGUMENTS = CONVERT.by_name


@dataclass(frozen=True)
class Conversion:
    """One conversion, checked as far as it can be without looking into tensors."""

    source: Path
    target: Path
    to_hf: bool
    tensor_model_parallel_size: int = 1
    pipeline_model_parallel_size: int = 1
    model_name: str = "auto"
    extra_vocab_size: int = 0
    dtype: str | None = None  # None: the source's
    overwrite: bool = False
    verify: bool = False
    verify_logits: bool = False
    max_file_bytes: int = DEFAULT_FILE_BYTES
    megatron_path: str = ""
    gqa_layout: str | None = None  # of QKV rows in a checkpoint of 2023 that does not tell it; None: not typed
    base: Path | None = None  # the model that an adapter was made over; None: what the adapter names
    adapter_only: bool = False


# Fields that are an argument's value as it is, under the flag's name.
_UNCHANGED = (
    "tensor_model_parallel_size", "pipeline_model_parallel_size", "extra_vocab_size", "dtype", "overwrite",
    "verify", "verify_logits", "megatron_path", "gqa_layout", "adapter_only",
)  # fmt: skip


def read(argv: Sequence[str]) -> Conversion:
    """`argv` as the script writes it, checked.

    Raises:
        SystemExit: status 2, after every finding was printed.
    """
    findings = Findings()
    texts = findings.texts(CONVERT, given_texts(CONVERT, argv))
    job = _job(texts, findings)
    findings.exit_if_any(SCRIPT)
    return job


def _job(texts: Texts, findings: Findings) -> Conversion:
    usable = all(argument.kind != "path" or not path_problem(texts[argument.dest]) for argument in CONVERT.documented)
    name = ARGUMENTS["MN"]
    # Towards Megatron the other order goes with an adapter alone.
    fits = {"gqa_layout": (PER_KV_HEAD,)} if texts.get("mg2hf") == "false" else {}
    value = findings.values([argument for argument in CONVERT.all if argument is not name], texts, fits)
    job = Conversion(
        source=Path(value["source"]),
        target=Path(value["target"]),
        to_hf=value["mg2hf"],
        model_name=texts[name.dest],
        max_file_bytes=value["max_shard_size"],
        base=Path(value["base"]) if value["base"] else None,
        **{field: value[field] for field in _UNCHANGED},
    )
    sided = usable and not findings.is_about(ARGUMENTS["mg2hf"])  # else nobody knows what the source should be
    if usable:
        _check_target(job, value["target"], findings)
    if sided and job.adapter_only and not job.to_hf:
        findings.add_flag("--adapter-only", "true", "it is for mg2hf = true: remove the flag, or write mg2hf = true.")
    for flag in ("--verify", "--verify-logits"):
        if job.adapter_only and getattr(job, flag.strip("-").replace("-", "_")):
            findings.add_flag(flag, "true", "it compares whole models, and --adapter-only writes none: remove the flag.")
    config = _source_config(job, findings) if sided else None
    if usable and not sided and not job.source.exists():
        findings.add(ARGUMENTS["SOURCE_CKPT_PATH"], job.source, "there is nothing of that name: write the folder of the model.")
    findings.choice(name, job.model_name, None if config is None else _names_of(config))
    if config is not None:
        for wrong, got, problem in model_findings(job, config):
            if not findings.is_about(ARGUMENTS[wrong]):
                findings.add(ARGUMENTS[wrong], got, problem)
    return job


def _names_of(config: LlamaConfig) -> list[str]:
    """What MN may be for this model."""
    return [*(name for name, size in LLAMA_SIZES.items() if not shape_differences(size, config)), "auto"]


def _check_target(job: Conversion, text: str, findings: Findings) -> None:
    argument = ARGUMENTS["TARGET_CKPT_PATH"]
    if not text:
        findings.add(argument, text, "it takes a folder that does not exist yet: write its path.")
        return
    if _is_in(job.source, job.target):
        findings.add(argument, text, "the source is in it, and must stay: write another folder.")
        return
    # A link stays, and what it names is made.
    finding = target_finding(job.target, job.overwrite) or unwritable(os.path.realpath(job.target))
    if finding:
        findings.add(argument, text, finding)


def _is_in(folder: Path, target: Path) -> bool:
    """Whether `target` is `folder`, or has it in it."""
    folder, target = folder.resolve(), target.resolve()
    return target in (folder, *folder.parents)


def _source_config(job: Conversion, findings: Findings) -> LlamaConfig | None:
    """What the source says it is; None where it was found wrong, or where only its tensors tell."""
    try:
        adapter = find_adapter(job.source)
        if adapter is not None:
            return _base_config(job, adapter, findings)
        for flag, got in (("--base", job.base), ("--adapter-only", "true" if job.adapter_only else None)):
            if got is not None:
                findings.add_flag(flag, got, f"it goes with an adapter, and {job.source} holds none: remove the flag.")
        if not job.to_hf:
            if job.gqa_layout == ALL_Q_FIRST:
                findings.add_flag(
                    "--gqa-layout", ALL_Q_FIRST, "it is for checkpoints of 2023, with mg2hf = true: remove the flag."
                )
            return _hf_config(job.source)
        location = resolve_checkpoint(job.source)
        description = read_model_description(location)
        if description is None:
            return _root_config(location)
        if job.extra_vocab_size not in (0, description.extra_vocab_size) and not findings.is_about(ARGUMENTS["EXTRA_VOCAB_SIZE"]):
            findings.add(
                ARGUMENTS["EXTRA_VOCAB_SIZE"],
                job.extra_vocab_size,
                f"the checkpoint was made with {description.extra_vocab_size}: write that, or 0, which keeps its rows.",
            )
        return description.model
    except UserError as error:
        findings.add(ARGUMENTS["SOURCE_CKPT_PATH"], job.source, str(error))
        return None


def _base_config(job: Conversion, adapter: Path, findings: Findings) -> LlamaConfig | None:
    """The model that `adapter` was made over; None where it was found wrong, where only tensors tell, or is not needed.

    Raises:
        UserError: adapter_config.json cannot be read, or names no folder that is there.
    """
    read_config(adapter)
    _check_layout(job, adapter, findings)
    if job.adapter_only and job.base is None:
        return None
    try:
        base = base_of(adapter, job.base)
        if _is_in(base, job.target) and not findings.is_about(ARGUMENTS["TARGET_CKPT_PATH"]):
            findings.add(ARGUMENTS["TARGET_CKPT_PATH"], job.target, "the base is in it, and must stay: write another folder.")
        if job.adapter_only:
            return None
        if is_hf_folder(base) or is_meta_folder(base):
            return _hf_config(base)
        location = resolve_checkpoint(base)
        description = read_model_description(location)
        return _root_config(location) if description is None else description.model
    except UserError as error:
        if job.base is None:
            raise
        findings.add_flag("--base", job.base, str(error))
        return None


def _check_layout(job: Conversion, adapter: Path, findings: Findings) -> None:
    """Note a --gqa-layout that contradicts what the adapter's run has recorded."""
    record = read_form(adapter)  # what is wrong with it is the source's fault, and not the flag's
    try:
        base_layout(record, job.gqa_layout, job.base)
    except UserError as error:
        findings.add_flag("--gqa-layout", job.gqa_layout, str(error))


def _hf_config(folder: Path) -> LlamaConfig | None:
    if not folder.is_dir():
        raise UserError("there is no such folder: write the Hugging Face folder with config.json and the weights.")
    if is_meta_folder(folder):
        refuse_placeholders(meta_companions(folder))
        return None  # params.json leaves out what the tensors tell
    if not is_hf_folder(folder):
        wanted = "with mg2hf = false it takes a Hugging Face folder, and this is none: write one, or mg2hf = true."
        raise UserError(snapshot_finding(folder) or wanted)
    find_weights(folder)
    refuse_placeholders(folder / name for name in COMPANIONS)
    return read_hf_config(folder)


def _root_config(location: CheckpointLocation) -> LlamaConfig | None:
    return read_hf_config(location.root) if (location.root / "config.json").is_file() else None


def model_findings(job: Conversion, config: LlamaConfig) -> list[tuple[str, object, str]]:
    """What in `job` does not go with the model: (argument's name, what it got, what is allowed and what to write)."""
    found: list[tuple[str, object, str]] = []
    if job.model_name in LLAMA_SIZES:
        differences = shape_differences(LLAMA_SIZES[job.model_name], config)
        if differences:
            found.append(("MN", job.model_name, f"{'; '.join(differences)}: write {' or '.join(_names_of(config))}."))
    sizes = {"TP": job.tensor_model_parallel_size, "PP": job.pipeline_model_parallel_size}
    rows = None if job.to_hf else config.vocab_size + job.extra_vocab_size
    found += [(name, sizes[name], problem) for name, problem in layout_findings(config, sizes["TP"], sizes["PP"], rows)]
    return found
