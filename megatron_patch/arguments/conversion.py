"""The converter's documented arguments and flags, checked as far as they can be without reading a tensor. Imports no torch."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_patch.arguments.findings import Findings, UsageParser, numbered
from megatron_patch.config import ALL_Q_FIRST, PER_KV_HEAD
from megatron_patch.errors import UserError
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
    DTYPES,
    CheckpointLocation,
    read_model_description,
    resolve_checkpoint,
)
from megatron_patch.formats.json_files import one_line
from megatron_patch.formats.placeholders import refuse_placeholders
from megatron_patch.formats.typed import unwritable
from megatron_patch.llama.model_config import LLAMA_SIZES, LlamaConfig, read_hf_config, shape_differences
from megatron_patch.llama.vocabulary import splitting_finding

SCRIPT = "model_convertor.sh"
ARGUMENTS = numbered(
    ("MEGATRON_PATH", "--megatron-path"),
    ("SOURCE_CKPT_PATH", "--source"),
    ("TARGET_CKPT_PATH", "--target"),
    ("TP", "--tensor-model-parallel-size"),
    ("PP", "--pipeline-model-parallel-size"),
    ("MN", "--model-name"),
    ("EXTRA_VOCAB_SIZE", "--extra-vocab-size"),
    ("mg2hf", "--mg2hf"),
)
DEFAULT_FILE_BYTES = 5 * 10**9
_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


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
    gqa_layout: str = PER_KV_HEAD  # of QKV rows in a checkpoint of 2023 that does not tell it


def read(argv: Sequence[str]) -> Conversion:
    """`argv` as the script writes it, checked.

    Raises:
        SystemExit: status 2, after every finding was printed.
    """
    parser = UsageParser(ARGUMENTS, prog=SCRIPT)
    parser.add_argument("--dtype", choices=DTYPES, help="dtype of the written weights; without it, the source's")
    parser.add_argument("--overwrite", action="store_true", help="replace the model that is in the target folder")
    parser.add_argument("--verify", action="store_true", help="read both sides again and compare every tensor")
    parser.add_argument(
        "--verify-logits", action="store_true", help="compare a forward pass with transformers', in fp32 on the CPU"
    )
    parser.add_argument(
        "--max-shard-size", type=file_bytes, default=DEFAULT_FILE_BYTES, help="of one file; 5GB, 500MB"
    )
    parser.add_argument(
        "--gqa-layout",
        choices=(PER_KV_HEAD, ALL_Q_FIRST),
        default=PER_KV_HEAD,
        help="order of QKV rows in a grouped-query checkpoint of 2023 whose files do not tell it; all-q-first: what the "
        "original converted from 2023-10-18 to 2023-11-09",
    )
    parsed = parser.parse_args(list(argv))
    findings = Findings()
    job = _job(parsed, findings)
    findings.exit_if_any(SCRIPT)
    return job


def file_bytes(text: str) -> int:
    """Bytes of `5GB`, `500MB`, `2GiB` or a plain number."""
    match = re.fullmatch(r"([0-9]{1,18}) *([A-Za-z]*)", text)
    if not match or match[2].upper() not in _UNITS or int(match[1]) == 0:
        raise argparse.ArgumentTypeError(f"got '{one_line(text)}'; it takes a size such as 5GB or 500MB")
    return int(match[1]) * _UNITS[match[2].upper()]


def _job(parsed: argparse.Namespace, findings: Findings) -> Conversion:
    raw = findings.refuse_line_ends(ARGUMENTS, {name: getattr(parsed, one.dest) for name, one in ARGUMENTS.items()})
    vars(parsed).update({ARGUMENTS[name].dest: text for name, text in raw.items()})
    usable = [findings.path(ARGUMENTS[name], raw[name]) for name in ("MEGATRON_PATH", "SOURCE_CKPT_PATH", "TARGET_CKPT_PATH")]
    to_hf = findings.boolean(ARGUMENTS["mg2hf"], parsed.mg2hf)
    job = Conversion(
        source=Path(parsed.source),
        target=Path(parsed.target),
        to_hf=to_hf,
        tensor_model_parallel_size=findings.whole(ARGUMENTS["TP"], parsed.tensor_model_parallel_size),
        pipeline_model_parallel_size=findings.whole(ARGUMENTS["PP"], parsed.pipeline_model_parallel_size),
        model_name=findings.choice(ARGUMENTS["MN"], parsed.model_name, (*LLAMA_SIZES, "auto")),
        extra_vocab_size=findings.whole(ARGUMENTS["EXTRA_VOCAB_SIZE"], parsed.extra_vocab_size, 0),
        dtype=parsed.dtype,
        overwrite=parsed.overwrite,
        verify=parsed.verify,
        verify_logits=parsed.verify_logits,
        max_file_bytes=parsed.max_shard_size,
        megatron_path=parsed.megatron_path,
        gqa_layout=parsed.gqa_layout,
    )
    if not all(usable):
        return job
    _check_target(job, parsed.target, findings)
    if job.gqa_layout == ALL_Q_FIRST and not to_hf:
        findings.add_flag("--gqa-layout", ALL_Q_FIRST, "it is for checkpoints of 2023, with mg2hf = true: remove the flag.")
    config = _source_config(job, findings)
    if config is not None:
        for name, got, problem in model_findings(job, config):
            findings.add(ARGUMENTS[name], got, problem)
    return job


def _check_target(job: Conversion, text: str, findings: Findings) -> None:
    argument = ARGUMENTS["TARGET_CKPT_PATH"]
    if not text:
        findings.add(argument, text, "it takes a folder that does not exist yet: write its path.")
        return
    source, target = job.source.resolve(), job.target.resolve()
    if target == source or target in source.parents:
        findings.add(argument, text, "the source is in it, and must stay: write another folder.")
        return
    # A link stays, and what it names is made.
    finding = target_finding(job.target, job.overwrite) or unwritable(os.path.realpath(job.target))
    if finding:
        findings.add(argument, text, finding)


def _source_config(job: Conversion, findings: Findings) -> LlamaConfig | None:
    """What the source says it is; None where it was found wrong, or where only its tensors tell."""
    try:
        if not job.to_hf:
            return _hf_config(job.source)
        location = resolve_checkpoint(job.source)
        description = read_model_description(location)
        if description is None:
            return _root_config(location)
        if job.extra_vocab_size not in (0, description.extra_vocab_size):
            findings.add(
                ARGUMENTS["EXTRA_VOCAB_SIZE"],
                job.extra_vocab_size,
                f"the checkpoint was made with {description.extra_vocab_size}: write that, or 0, which keeps its rows.",
            )
        return description.model
    except UserError as error:
        findings.add(ARGUMENTS["SOURCE_CKPT_PATH"], job.source, str(error))
        return None


def _hf_config(folder: Path) -> LlamaConfig | None:
    if not folder.is_dir():
        raise UserError("there is no such folder: write the Hugging Face folder with config.json and the weights.")
    if is_meta_folder(folder):
        refuse_placeholders(meta_companions(folder))
        return None  # params.json leaves out what the tensors tell
    if not is_hf_folder(folder):
        finding = snapshot_finding(folder) or "with mg2hf = false it takes a Hugging Face folder, and this is none: write one"
        raise UserError(finding if finding.endswith(".") else f"{finding}, or mg2hf = true.")
    find_weights(folder)
    refuse_placeholders(folder / name for name in COMPANIONS)
    return read_hf_config(folder)


def _root_config(location: CheckpointLocation) -> LlamaConfig | None:
    return read_hf_config(location.root) if (location.root / "config.json").is_file() else None


def model_findings(job: Conversion, config: LlamaConfig) -> list[tuple[str, object, str]]:
    """What in `job` does not go with the model: (argument's name, what it got, what is allowed and what to write)."""
    found: list[tuple[str, object, str]] = []
    if job.model_name != "auto":
        differences = shape_differences(LLAMA_SIZES[job.model_name], config)
        if differences:
            right = [name for name, size in LLAMA_SIZES.items() if not shape_differences(size, config)]
            found.append(("MN", job.model_name, f"{'; '.join(differences)}: write {' or '.join([*right, 'auto'])}."))
    tp, pp = job.tensor_model_parallel_size, job.pipeline_model_parallel_size
    counts = (
        (config.num_attention_heads, "attention heads"),
        (config.num_query_groups, "KV groups"),
        (config.ffn_hidden_size, "rows of the feed-forward layer"),
    )
    for count, what in counts:
        if count % tp:
            allowed = ", ".join(
                str(n) for n in range(1, config.num_query_groups + 1) if not any(number % n for number, _ in counts)
            )
            found.append(("TP", tp, f"it must divide the {count} {what}: write one of {allowed}."))
            break
    if not job.to_hf and (finding := splitting_finding(config.vocab_size + job.extra_vocab_size, tp)):
        found.append(("TP", tp, finding))
    if config.num_layers % pp:
        allowed = ", ".join(str(n) for n in range(1, config.num_layers + 1) if config.num_layers % n == 0)
        found.append(("PP", pp, f"it must divide the {config.num_layers} layers: write one of {allowed}."))
    return found
