"""Filling one rank's adapters from a folder of PEFT's."""

from __future__ import annotations

import megatron_patch.core.device  # noqa: F401, I001  prepares megatron-core for this machine

import math
from pathlib import Path
from typing import Any

import torch

from megatron_patch.core import parallel
from megatron_patch.errors import UserError
from megatron_patch.formats.lazy import LazyTensor, Rows, load
from megatron_patch.formats.peft_adapter import CONFIG, EMBEDDING, OUTPUT_LAYER, LoraConfig, check_whole, layer_module
from megatron_patch.formats.peft_tensors import Adapter, read_adapter
from megatron_patch.llama.model_config import LlamaConfig
from megatron_patch.model.lora import LoraLayer, adapters
from megatron_patch.plan.lora import target_shapes


def load_adapter(folder: str | Path, model: Any, llama: LlamaConfig, lora: LoraConfig) -> None:
    """Copy this rank's part of the adapter in `folder` into `model`, cast to its dtype. All ranks call it.

    Args:
        folder: what PEFT saved, or a run of this project.
        model: one pipeline stage of a `LlamaModel`, in core's DDP wrapper or not.
        llama: the whole model.
        lora: what the run trains.

    Raises:
        UserError: the adapter cannot be read, or is of another model or form. Every rank raises it.
    """
    parallel.all_or_none(lambda: _load(Path(folder), model.module if hasattr(model, "module") else model, llama, lora))


@torch.no_grad()
def _load(folder: Path, model: Any, llama: LlamaConfig, lora: LoraConfig) -> None:
    adapter = read_adapter(folder)
    check_adapter(folder, adapter, llama, lora, model.vocab_rows)
    for layer, module in adapters(model):
        for name in module.targets:
            pair = adapter.pairs[layer_module(layer, name)]
            module.a_of(name).copy_(module.columns_of(load(pair.a)))
            own = module.b_of(name)
            own.copy_(load(_rows_of(module, pair.b)).view(own.shape))
    vocabulary = {EMBEDDING: "embedding.word_embeddings", OUTPUT_LAYER: "output_layer"}
    matrices = dict(model.named_parameters())
    for name, tensor in adapter.whole.items():
        weight = matrices.get(f"{vocabulary[name]}.weight")
        if weight is not None:
            rows = Rows(tensor, model.first_row, model.first_row + model.valid_rows)
            weight[: model.valid_rows].copy_(load(rows))


def _rows_of(module: LoraLayer, b: LazyTensor) -> LazyTensor:
    """This rank's rows of a whole B [out, r]."""
    if module.cut[0] != "lora_b":
        return b
    share = b.shape[0] // module.tp_group.size()
    return Rows(b, module.tp_group.rank() * share, (module.tp_group.rank() + 1) * share)


def check_adapter(folder: Path, adapter: Adapter, llama: LlamaConfig, lora: LoraConfig, vocab_rows: int) -> None:
    """Raise unless the adapter has what `lora` trains over `llama`, and nothing else.

    Args:
        vocab_rows: rows of the vocabulary, with those of EXTRA_VOCAB_SIZE.

    Raises:
        UserError: it has not; the sentence names the first module that differs.
    """
    shapes = target_shapes(llama)
    expected = {layer_module(layer, name): shapes[name] for layer in range(llama.num_layers) for name in lora.targets}
    for module in sorted(expected.keys() ^ adapter.pairs.keys()):
        wanted = f"in each of the model's layers {', '.join(lora.targets)} must have one, and nothing else"
        if module in expected:
            raise UserError(f"{folder} has no adapter of {module}; {wanted}.")
        raise UserError(f"{folder} has an adapter of {module}; {wanted}.")
    for module, pair in adapter.pairs.items():
        out, width = expected[module]
        if pair.b.shape[0] != out or pair.a.shape[1] != width:
            found, needed = [pair.b.shape[0], pair.a.shape[1]], [out, width]
            raise UserError(f"{folder}: the adapter of {module} is over a weight {found}, and the model's is {needed}.")
    if not math.isclose(adapter.config.scale, lora.scale):  # of α/√r the run knows α·√r, which is rounded
        raise UserError(f"{folder}/{CONFIG} says a scale of {adapter.config.scale:g}, and the run's is {lora.scale:g}.")
    check_whole(folder, adapter.whole)
    for module, tensor in adapter.whole.items():
        if not lora.saved:
            raise UserError(f"{folder} holds a whole {module}, which this run does not train: write --lora-vocabulary true.")
        if tuple(tensor.shape) != (vocab_rows, llama.hidden_size):
            raise UserError(
                f"{folder}: {module} is {list(tensor.shape)}, and the model's is {[vocab_rows, llama.hidden_size]}; "
                "EXTRA_VOCAB_SIZE adds rows."
            )
