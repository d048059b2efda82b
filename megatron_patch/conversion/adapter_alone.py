"""The adapter of a LoRA run's checkpoint as a folder of its own, which PEFT loads over the base."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from megatron_patch.conversion.write import write_json
from megatron_patch.errors import UserError
from megatron_patch.folders.adapter_base import find_adapter
from megatron_patch.folders.layout import TOKENIZER_FILES, copy_companions
from megatron_patch.formats.checksums import finish_together
from megatron_patch.formats.dtypes import of_name
from megatron_patch.formats.json_files import json_object
from megatron_patch.formats.lazy import Cast, LazyTensor, nbytes, records_of
from megatron_patch.formats.peft_adapter import CONFIG
from megatron_patch.formats.peft_tensors import Adapter, Pair, read_adapter, write_adapter


def open_adapter(source: Path, dtype: str | None) -> tuple[Path, Adapter]:
    """(PEFT's folder that `source` means, the adapter in it with all tensors in `dtype`; None: as they are).

    Raises:
        UserError: there is none, or it cannot be read.
    """
    folder = find_adapter(source)
    if folder is None:
        raise UserError(f"--adapter-only goes with an adapter, and {source} holds none: leave it out.")
    adapter = read_adapter(folder)
    if dtype is None:
        return folder, adapter

    def cast(tensor: LazyTensor, name: str) -> LazyTensor:
        wanted = of_name(dtype).torch_dtype
        return tensor if tensor.dtype == wanted else Cast(tensor, wanted, name)

    pairs = {name: Pair(cast(pair.a, name), cast(pair.b, name)) for name, pair in adapter.pairs.items()}
    return folder, replace(adapter, pairs=pairs, whole={name: cast(tensor, name) for name, tensor in adapter.whole.items()})


def tensors_of(adapter: Adapter) -> list[LazyTensor]:
    """Every tensor of an adapter."""
    return [*(tensor for pair in adapter.pairs.values() for tensor in (pair.a, pair.b)), *adapter.whole.values()]


def size_of(adapter: Adapter) -> int:
    """Bytes of all its tensors."""
    return sum(map(nbytes, tensors_of(adapter)))


def write_alone(source: Path, adapter: Adapter, base: Path | None, folder: Path, on_bytes: Callable[[int], None]) -> None:
    """Write into the empty `folder` the `adapter` that was read from `source`.

    Args:
        base: the model's folder that adapter_config.json is to name; None: the one that it names.

    Raises:
        UserError: a tensor is damaged.
    """
    write_adapter(folder, adapter, on_bytes)
    finish_together((record for tensor in tensors_of(adapter) for record in records_of(tensor)), 0, lambda one: [one])
    content = json_object(source / CONFIG)  # with what this project does not ask for, such as patterns of names
    if base is not None:
        content["base_model_name_or_path"] = str(base.absolute())
    write_json(folder / CONFIG, content)
    copy_companions(source, folder, TOKENIZER_FILES)
