"""The adapters in a checkpoint of a LoRA run, as PEFT keeps them: of each Hugging Face layer its own A and B.

In the files they are core's: of q, k and v one A and one B, of gate and up another (`model/lora.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from megatron_patch.errors import UserError
from megatron_patch.formats.lazy import LazyTensor, Rows, stack
from megatron_patch.formats.peft_adapter import EMBEDDING as PEFT_EMBEDDING
from megatron_patch.formats.peft_adapter import OUTPUT_LAYER as PEFT_OUTPUT_LAYER
from megatron_patch.formats.peft_adapter import LoraConfig, layer_module
from megatron_patch.formats.peft_tensors import Adapter, Pair
from megatron_patch.llama.fused_layers import FusedLayer, fused_layers
from megatron_patch.llama.model_config import LlamaConfig
from megatron_patch.weights.native import NativeFiles
from megatron_patch.weights.table import EMBEDDING, OUTPUT_LAYER, listed


def open_adapters(folder: Path, model: LlamaConfig, lora: LoraConfig) -> Adapter:
    """Find the adapters in one iteration's folder; their bytes are not read.

    Args:
        folder: of a run over frozen weights.
        model: the whole model.
        lora: what the run trained.

    Raises:
        UserError: it holds none of this form, or is damaged.
    """
    fused = [one for one in fused_layers(model) if any(part in lora.targets for part in one.parts)]
    keys = {(one, part): f"decoder.layers.{one.name}.lora_{part}" for one in fused for part in ("a", "b")}
    whole = {PEFT_EMBEDDING: EMBEDDING, PEFT_OUTPUT_LAYER: OUTPUT_LAYER} if lora.saved else {}
    files = NativeFiles(folder, {*keys.values(), *whole.values()})
    missing = sorted(key for key in (*keys.values(), *whole.values()) if files.entry(key) is None)
    if missing:
        raise UserError(f"{folder} lacks {listed(missing)}; it is no checkpoint of such a LoRA run.")
    pairs: dict[str, Pair] = {}
    for layer in range(model.num_layers):
        for one in fused:
            a, b = (files.tensor(keys[one, part], layer, model.num_layers, 2) for part in ("a", "b"))
            pairs |= {layer_module(layer, name): pair for name, pair in _parted(one, lora, a, b)}
    return Adapter(lora, pairs, {name: files.tensor(key, None, model.num_layers, 2) for name, key in whole.items()})


def _parted(fused: FusedLayer, lora: LoraConfig, a: LazyTensor, b: LazyTensor) -> Iterator[tuple[str, Pair]]:
    """(Hugging Face layer, its A and B) of a fused layer's two matrices."""
    targeted = [(name, height) for name, height in zip(fused.parts, fused.heights) if name in lora.targets]
    period, row = sum(height for _, height in targeted), 0
    for place, (name, height) in enumerate(targeted):
        rows = [Rows(b, start * period + row, start * period + row + height) for start in range(fused.periods)]
        yield name, Pair(Rows(a, place * lora.rank, (place + 1) * lora.rank), stack(rows))
        row += height
