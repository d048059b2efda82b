"""The tensors of PEFT's adapter folders, read when they are asked for, and written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from megatron_patch.errors import UserError
from megatron_patch.formats.lazy import LazyTensor
from megatron_patch.formats.peft_adapter import (
    CONFIG,
    TENSORS,
    LoraConfig,
    config_text,
    is_left_over,
    module_and_part,
    read_config,
    tensor_name,
)
from megatron_patch.formats.safetensors_files import read_safetensors
from megatron_patch.formats.streaming import Item, plan_safetensors, write_files


@dataclass(frozen=True)
class Pair:
    """A module's adapter: A [r, in] and B [out, r]."""

    a: LazyTensor
    b: LazyTensor


@dataclass(frozen=True)
class Adapter:
    """A LoRA with its tensors.

    Attributes:
        pairs: Hugging Face name of a module, such as `model.layers.0.self_attn.q_proj` → its A and B.
        whole: name of a module, such as `model.embed_tokens` → the weight that takes the place of the base's.
    """

    config: LoraConfig
    pairs: Mapping[str, Pair]
    whole: Mapping[str, LazyTensor]


def read_adapter(folder: str | Path) -> Adapter:
    """The adapter that PEFT saved in `folder`. No tensor's values are read.

    Raises:
        UserError: a file is missing or damaged, a tensor has an unknown name, an A or B lacks the other one, or their
            shapes do not fit the rank.
    """
    config, path = read_config(folder), Path(folder) / TENSORS
    if not path.is_file():
        raise UserError(f"There is no {TENSORS} in {folder}; copy it there, or save the adapter again with a newer PEFT.")
    tensors, _ = read_safetensors(path)
    parts: dict[tuple[str, str], LazyTensor] = {}
    for name, tensor in tensors.items():
        if is_left_over(name):
            continue
        found = module_and_part(name)
        if found is None or len(tensor.shape) != 2:
            raise UserError(f"{path} holds {name}, which is no matrix of a LoRA over linear layers; only those are read.")
        parts[found] = tensor
    modules = dict.fromkeys(module for module, part in parts if part)
    pairs = {module: _pair(path, module, parts, config.rank) for module in modules}
    if not pairs:
        raise UserError(f"{path} holds no adapter; copy the right file there.")
    return Adapter(config, pairs, {module: tensor for (module, part), tensor in parts.items() if not part})


def _pair(path: Path, module: str, parts: Mapping[tuple[str, str], LazyTensor], rank: int) -> Pair:
    """The pair of one module, checked."""
    a, b = parts.get((module, "A")), parts.get((module, "B"))
    if a is None or b is None:
        lacking = tensor_name(module, "A" if a is None else "B")
        raise UserError(f"{path} lacks {lacking}; copy the file again.")
    if a.shape[0] != rank or b.shape[1] != rank:
        raise UserError(f"{path}: the adapter of {module} has rank {a.shape[0]}, and {CONFIG} says {rank}; copy both again.")
    return Pair(a, b)


def write_adapter(folder: Path, adapter: Adapter, on_bytes: Callable[[int], None] = lambda count: None) -> None:
    """Write `adapter` into the existing `folder` as PEFT would, its tensors in the dtype that they have.

    Raises:
        UserError: a tensor cannot be read.
        OSError: the operating system refused something.
    """
    named = {tensor_name(module, part): tensor for module, pair in adapter.pairs.items() for part, tensor in
             (("A", pair.a), ("B", pair.b))}  # fmt: skip
    named |= {tensor_name(module): tensor for module, tensor in adapter.whole.items()}
    items = [Item(name, tensor, tuple(tensor.shape)) for name, tensor in sorted(named.items())]
    write_files(folder, [(TENSORS, items)], plan_safetensors, on_bytes)
    (folder / CONFIG).write_text(config_text(adapter.config), encoding="utf-8")
