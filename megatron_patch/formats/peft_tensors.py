"""The tensors of PEFT's adapter folders, read when they are asked for, and written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_patch.errors import UserError
from megatron_patch.formats.json_files import one_line
from megatron_patch.formats.lazy import FileTensor, LazyTensor, Strided
from megatron_patch.formats.peft_adapter import (
    CONFIG,
    OLD_TENSORS,
    TENSORS,
    LoraConfig,
    config_text,
    is_left_over,
    module_and_part,
    read_config,
    tensor_name,
)
from megatron_patch.formats.placeholders import refuse_placeholder
from megatron_patch.formats.safetensors_files import read_safetensors
from megatron_patch.formats.streaming import Item, plan_safetensors, write_files
from megatron_patch.formats.torch_files import read_torch_file


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
    config = read_config(folder)
    path, tensors = _tensors(Path(folder))
    parts: dict[tuple[str, str], LazyTensor] = {}
    for name, tensor in tensors.items():
        if is_left_over(name):
            continue
        found = module_and_part(name)
        is_matrix = isinstance(tensor, (FileTensor, Strided)) and len(tensor.shape) == 2 and all(tensor.shape)
        if found is None or not is_matrix:
            raise UserError(
                f"{path} holds {one_line(name)}, which is no matrix of a LoRA over linear layers; only those are read."
            )
        parts[found] = tensor
    modules = dict.fromkeys(module for module, part in parts if part)
    pairs = {module: _pair(path, module, parts, config.rank) for module in modules}
    if not pairs:
        raise UserError(f"{path} holds no adapter; copy the right file there.")
    return Adapter(config, pairs, {module: tensor for (module, part), tensor in parts.items() if not part})


def _tensors(folder: Path) -> tuple[Path, Mapping[str, Any]]:
    """(the file of the adapter's tensors, what is in it by name): safetensors, or a pickle as PEFT wrote before 0.6.

    Raises:
        UserError: neither is there, or it is damaged, or the pickle asks for more than tensors. Nothing of it has run.
    """
    path = folder / TENSORS
    if path.is_file():
        refuse_placeholder(path)
        return path, read_safetensors(path)[0]
    path = folder / OLD_TENSORS
    if not path.is_file():
        raise UserError(f"There is no {TENSORS} in {folder}; copy it there, or save the adapter again with a newer PEFT.")
    refuse_placeholder(path)
    content = read_torch_file(path)
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise UserError(f"{path} holds more than tensors by name; copy the right file there.")
    return path, content


def _pair(path: Path, module: str, parts: Mapping[tuple[str, str], LazyTensor], rank: int) -> Pair:
    """The pair of one module, checked."""
    a, b = parts.get((module, "A")), parts.get((module, "B"))
    if a is None or b is None:
        lacking = tensor_name(module, "A" if a is None else "B")
        raise UserError(f"{path} lacks {lacking}; copy the file again.")
    for found in (a.shape[0], b.shape[1]):
        if found != rank:
            raise UserError(f"{path}: the adapter of {module} has rank {found}, and {CONFIG} says {rank}; copy both again.")
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
