"""What the flags of LoRA come to, alone and with an adapter that a run begins with. Imports no torch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from megatron_patch.arguments.findings import Findings
from megatron_patch.config import Options
from megatron_patch.errors import UserError
from megatron_patch.formats.peft_adapter import TARGETS, check_whole, modules_of, read_config

_NEED_RANK = ("lora_alpha", "lora_dropout", "lora_plus_ratio", "lora_targets", "lora_vocabulary", "qlora")


def with_lora(options: Options, findings: Findings, precision: object) -> Options:
    """`options` in which rank, alpha and targets say what is trained, as it is recorded.

    What is wrong with the flags becomes a finding.

    Args:
        precision: PR as it was typed.
    """
    if precision == "fp8" and options.qlora:
        findings.add_flag("--qlora", "true", "weights in 4 bits have no FP8 products: write bf16 as PR, or remove the flag.")
    if options.lora_adapter:
        try:
            options = _of_adapter(options, findings)
        except (UserError, OSError) as error:
            findings.add_flag("--lora-adapter", options.lora_adapter, str(error))
            return options
    elif not options.lora_rank:
        for name in _NEED_RANK:
            if getattr(options, name) != getattr(Options(), name):
                wanted = "it is for LoRA, which --lora-rank turns on: write --lora-rank 16 too, or remove the flag."
                findings.add_flag("--" + name.replace("_", "-"), _typed(getattr(options, name)), wanted)
        return options
    given = _names(options.lora_targets) if options.lora_targets else list(TARGETS)
    unknown = [name for name in given if name not in TARGETS]
    if unknown:
        wanted = f"it takes names of {', '.join(TARGETS)}, with commas between them: write q_proj,v_proj, for example."
        findings.add_flag("--lora-targets", options.lora_targets, wanted)
        given = list(TARGETS)
    targets = ",".join(name for name in TARGETS if name in given)
    return replace(options, lora_alpha=options.lora_alpha or 2.0 * options.lora_rank, lora_targets=targets)


def _of_adapter(options: Options, findings: Findings) -> Options:
    """Rank, alpha and targets of the adapter; a finding where a flag says otherwise.

    Raises:
        UserError: the adapter cannot be read, or is over modules that are neither adapted nor trained whole here.
    """
    adapter, modules = read_config(options.lora_adapter), modules_of(options.lora_adapter)
    named = {module.rpartition(".")[2] for module, part in modules if part}
    whole = {module for module, part in modules if not part}
    check_whole(options.lora_adapter, whole)
    if others := sorted(named - set(TARGETS)):
        raise UserError(
            f"{options.lora_adapter} has matrices for {', '.join(others)}; adapters are trained over {', '.join(TARGETS)}: "
            "merge it into its base with model_convertor.sh, and begin with the result."
        )
    found: dict[str, Any] = {
        "lora_rank": adapter.rank,
        "lora_alpha": adapter.scale * adapter.rank if adapter.is_rank_stabilized else float(adapter.alpha),
        "lora_targets": ",".join(name for name in TARGETS if name in named),
    }
    for name, value in found.items():
        typed = getattr(options, name)
        is_same = {*_names(typed)} == named if name == "lora_targets" else typed == value
        if typed and not is_same:
            flag = "--" + name.replace("_", "-")
            wanted = f"the adapter of --lora-adapter has {_typed(value)}: write that, or remove the flag."
            findings.add_flag(flag, _typed(typed), wanted)
    return replace(options, **found, lora_vocabulary=options.lora_vocabulary or bool(whole))


def _names(targets: str) -> list[str]:
    """The names of --lora-targets."""
    return [name.strip() for name in targets.split(",")]


def _typed(value: object) -> str:
    """A value as it is typed."""
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)
