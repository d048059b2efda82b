"""PEFT's adapter folders: what adapter_config.json says of a LoRA, and how its tensors are called. Imports no torch.

A LoRA adds scale · B·A to a weight W [out, in]; A is [r, in], B is [out, r] (Hu et al., arXiv:2106.09685). PEFT keeps
both in adapter_model.safetensors (`peft_tensors.py`). What would mean another computation is refused, by its key.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from megatron_patch.errors import UserError
from megatron_patch.formats.json_files import finite_in, json_object, one_line, shown, whole_in

CONFIG, TENSORS, OLD_TENSORS = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
# LLaMA's linear layers, by Hugging Face's names, in the order in which the model computes.
ATTENTION_TARGETS, MLP_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj"), ("gate_proj", "up_proj", "down_proj")
TARGETS = (*ATTENTION_TARGETS, *MLP_TARGETS)
EMBEDDING, OUTPUT_LAYER = "model.embed_tokens", "lm_head"
MOST_RANK = 1 << 16

_PREFIX = "base_model.model."  # before each module's name in a file of PEFT
_PART = re.compile(r"(.+)\.lora_([AB])(?:\.default)?\.weight")
# Keys that say nothing about the computation: where files came from, or which modules were meant; the tensors' names
# say which have an adapter.
_SILENT = {
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "corda_config", "ensure_weight_tying", "eva_config",
    "exclude_modules", "inference_mode", "init_lora_weights", "layers_pattern", "layers_to_transform", "loftq_config",
    "lora_alpha", "lora_dropout", "megatron_config", "megatron_core", "modules_to_save", "peft_type", "peft_version",
    "qalora_group_size", "r", "rank_pattern", "revision", "runtime_config", "target_modules", "task_type", "use_rslora",
}  # fmt: skip
# Beginnings of init_lora_weights that change the base weights: the adapter then stands over other ones than the
# folder's.
_BASE_CHANGING = ("pissa", "olora", "corda", "loftq", "lora_ga", "mica")


@dataclass(frozen=True)
class LoraConfig:
    """One LoRA.

    Attributes:
        rank: r, of every module.
        alpha: numerator of the scale.
        dropout: probability with which an element of an adapter's input is dropped in training.
        targets: last parts of the modules' names, such as `q_proj`.
        saved: names of modules that were trained whole and are kept whole, such as `embed_tokens`.
        base: what the adapter was made over, a folder or a name of a hub; empty: not recorded.
        is_rank_stabilized: whether the scale is alpha / √r instead of alpha / r (arXiv:2312.03732).
        quantizes: whether training holds the frozen linear layers in 4 bits; no file says so.
    """

    rank: int
    alpha: float
    dropout: float = 0.0
    targets: tuple[str, ...] = TARGETS
    saved: tuple[str, ...] = ()
    base: str = ""
    is_rank_stabilized: bool = False
    quantizes: bool = False

    @property
    def scale(self) -> float:
        """By what B·A is multiplied."""
        return self.alpha / (math.sqrt(self.rank) if self.is_rank_stabilized else self.rank)


def is_adapter_folder(folder: str | Path) -> bool:
    """Whether PEFT would see an adapter in `folder`."""
    return (Path(folder) / CONFIG).is_file()


def read_config(folder: str | Path) -> LoraConfig:
    """The LoRA that `folder`'s adapter_config.json describes.

    Raises:
        UserError: there is none, it is no LoRA, or it asks for what is not computed here.
    """
    path = Path(folder) / CONFIG
    try:
        content = json_object(path)
    except FileNotFoundError:
        raise UserError(f"There is no {CONFIG} in {folder}; name the folder in which PEFT saved the adapter.") from None
    try:
        return _parsed(content)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _parsed(content: Mapping[str, Any]) -> LoraConfig:
    """As `read_config`; the sentences name no file."""
    if content.get("peft_type") != "LORA":
        raise UserError(f"peft_type is {shown(content.get('peft_type'))}; only LORA is read.")
    missing = [key for key in ("r", "lora_alpha") if content.get(key) is None]
    if missing:
        raise UserError(f"it lacks {', '.join(missing)}; copy the right file there.")
    refused = [f"{key} = {shown(value)}" for key, value in content.items() if _changes_computation(key, value)]
    if refused:
        raise UserError(f"it asks for what is not computed here: {'; '.join(refused)}; only plain LoRA is read.")
    dropout, base = content.get("lora_dropout") or 0.0, content.get("base_model_name_or_path")
    return LoraConfig(
        rank=whole_in(content, "r", 1, MOST_RANK),
        alpha=finite_in(content, "lora_alpha", 0.0, 1e6),
        dropout=finite_in({"lora_dropout": dropout}, "lora_dropout", -1e-9, 1.0),
        targets=_names(content, "target_modules"),
        saved=_names(content, "modules_to_save"),
        base=base if isinstance(base, str) else "",
        is_rank_stabilized=bool(content.get("use_rslora")),  # as PEFT asks
    )


def _changes_computation(key: str, value: object) -> bool:
    """Whether a key of adapter_config.json asks for more than B·A times one scale."""
    if key == "bias":
        return value != "none"
    if key == "init_lora_weights":
        return isinstance(value, str) and value.lower().startswith(_BASE_CHANGING)
    if key in ("rank_pattern", "alpha_pattern"):
        return bool(value)
    return key not in _SILENT and bool(value)


def _names(content: Mapping[str, Any], key: str) -> tuple[str, ...]:
    """The last parts of the names in a list; a pattern in its place, or nothing, gives none."""
    value = content.get(key)
    if not isinstance(value, list):
        return ()
    if not all(isinstance(name, str) for name in value):
        raise UserError(f"{key} is {shown(value)}; it must be a list of names")
    return tuple(dict.fromkeys(name.rpartition(".")[2] for name in value))


def config_text(config: LoraConfig, peft_version: str = "0.17.0") -> str:
    """The adapter_config.json of `config`. What is not in it has PEFT's default."""
    whole_alpha = int(config.alpha) if config.alpha == int(config.alpha) else config.alpha
    content = {
        "base_model_name_or_path": config.base or None,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": whole_alpha,
        "lora_dropout": config.dropout,
        "modules_to_save": list(config.saved) or None,
        "peft_type": "LORA",
        "peft_version": peft_version,
        "r": config.rank,
        "target_modules": list(config.targets),
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": config.is_rank_stabilized,
    }
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def tensor_name(module: str, part: str = "") -> str:
    """What PEFT calls a tensor of `module`, such as `model.layers.0.self_attn.q_proj`.

    Args:
        part: `A` or `B`; empty for a module that is kept whole.
    """
    return f"{_PREFIX}{module}.lora_{part}.weight" if part else f"{_PREFIX}{module}.weight"


def module_and_part(name: str) -> tuple[str, str] | None:
    """(module, `A`, `B` or empty) of a tensor's name in PEFT's file; None if it is no name of a LoRA's."""
    if not name.startswith(_PREFIX):
        return None
    inner = name.removeprefix(_PREFIX)
    found = _PART.fullmatch(inner)
    if found:
        return found[1], found[2]
    whole = inner.removesuffix(".weight")
    # Where a vocabulary has grown, PEFT keeps the trained matrix under a second name.
    whole = whole.removesuffix(".modules_to_save") if whole != inner else whole
    return (whole, "") if whole != inner and "lora_" not in whole else None


def is_left_over(name: str) -> bool:
    """Whether a tensor is the untrained original of one that is kept whole. PEFT saves it where a vocabulary has
    grown."""
    return name.startswith(_PREFIX) and name.endswith(".original_module.weight")


def modules_of(folder: str | Path) -> set[tuple[str, str]]:
    """(module, `A`, `B` or empty) of every tensor in `folder`'s file. Reads its header alone.

    Raises:
        UserError: there is no such file, or it is none of a LoRA's.
    """
    path = Path(folder) / TENSORS
    if not path.is_file():
        raise UserError(f"There is no {TENSORS} in {folder}; copy it there, or save the adapter again with a newer PEFT.")
    try:
        with safe_open(path, framework="numpy") as file:
            names = [name for name in file.keys() if not is_left_over(name)]  # noqa: SIM118  it is no dict
    except SafetensorError as error:
        raise UserError(f"{path} has a damaged header ({one_line(error)}); copy it again.") from None
    found = {name: module_and_part(name) for name in names}
    for name, module in found.items():
        if module is None:
            raise UserError(
                f"{path} holds {one_line(name)}, which is no matrix of a LoRA over linear layers; only those are read."
            )
    return {module for module in found.values() if module is not None}


def check_whole(folder: str | Path, modules: Iterable[str]) -> None:
    """Raise if `folder`'s adapter has a whole module, one of `modules`, that is not trained whole here.

    Raises:
        UserError: it is neither the embedding nor the output layer.
    """
    for module in sorted(set(modules) - {EMBEDDING, OUTPUT_LAYER}):
        raise UserError(
            f"{folder} holds a whole {module}; beside adapters only embedding and output layer are trained here: merge it "
            "into its base with model_convertor.sh, and begin a new one over that."
        )


def layer_module(layer: int, target: str) -> str:
    """The Hugging Face name of one linear layer: `model.layers.3.mlp.up_proj`."""
    return f"model.layers.{layer}.{'self_attn' if target in ATTENTION_TARGETS else 'mlp'}.{target}"
