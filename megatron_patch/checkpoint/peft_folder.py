"""The adapter of a LoRA run's checkpoint as PEFT reads it, in a folder in the iteration's."""

from __future__ import annotations

from pathlib import Path

from megatron_patch.folders.adapter_base import ADAPTER
from megatron_patch.formats.peft_adapter import LoraConfig
from megatron_patch.formats.peft_tensors import write_adapter
from megatron_patch.llama.model_config import LlamaConfig
from megatron_patch.weights.native_adapters import open_adapters


def write_beside(model: LlamaConfig, lora: LoraConfig, folder: Path) -> None:
    """Write the adapter of the checkpoint in `folder` into a folder in it. On the first rank, when the rest is written.

    Raises:
        UserError: what was written cannot be read back.
        OSError: the operating system refused something.
    """
    (folder / ADAPTER).mkdir()
    write_adapter(folder / ADAPTER, open_adapters(folder, model, lora))
