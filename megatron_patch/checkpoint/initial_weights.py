"""Filling one rank's part of the model from any checkpoint that `open_source` reads, without a copy on the disk."""

from __future__ import annotations

import megatron_patch.core.device  # noqa: F401, I001  prepares megatron-core for this machine

import re
from pathlib import Path
from typing import Any

from megatron.core import parallel_state

from megatron_patch.config import PER_KV_HEAD
from megatron_patch.errors import UserError
from megatron_patch.formats.lazy import LazyTensor, Rows
from megatron_patch.llama.model_config import LlamaConfig
from megatron_patch.weights.opening import open_source
from megatron_patch.weights.shares import copy_rows, share_of_rows
from megatron_patch.weights.source import Source
from megatron_patch.weights.table import BY_KEY, EMBEDDING, OUTPUT_LAYER, Place

# The model's own names of what the checkpoint calls as Transformer Engine does.
_NORMS = {
    "input_layernorm.weight": "self_attention.linear_qkv.layer_norm_weight",
    "pre_mlp_layernorm.weight": "mlp.linear_fc1.layer_norm_weight",
}
_LAYER = re.compile(r"decoder\.layers\.(\d+)\.(.+)")


def load_from_source(
    path: str | Path, model: Any, gqa_layout: str = PER_KV_HEAD, fallback: LlamaConfig | None = None
) -> tuple[str, ...]:
    """Copy this rank's share of every weight into `model` (a GPTModel, one pipeline stage), cast to its dtype.

    Args:
        path: a checkpoint's root, or one iteration's folder.
        model: one pipeline stage.
        gqa_layout, fallback: as `open_source` takes them.

    Returns:
        What the user should know, one sentence each.

    Raises:
        UserError: the checkpoint cannot be read, or does not have this model's shapes.
    """
    source = open_source(path, fallback, gqa_layout)
    rank, size = parallel_state.get_tensor_model_parallel_rank(), parallel_state.get_tensor_model_parallel_world_size()
    for name, parameter in model.named_parameters():
        place = _place(model, name)
        axis = getattr(parameter, "partition_dim", -1) if getattr(parameter, "tensor_model_parallel", False) else -1
        tensor = source.megatron(place)
        if place.entry.key in (EMBEDDING, OUTPUT_LAYER):
            _check_rows(source, place, tensor, model.vocab_rows)
            tensor = Rows(tensor, model.first_row, model.first_row + model.valid_rows)
            copy_rows(str(path), place, tensor, parameter[: model.valid_rows])
            continue
        share = share_of_rows(place, tensor, rank, size) if axis == 0 else tensor
        copy_rows(str(path), place, share, parameter, rank if axis == 1 else 0)
    return source.notes


def _place(model: Any, name: str) -> Place:
    match = _LAYER.fullmatch(name)
    if not match:
        return Place(BY_KEY[name], None)
    layer = model.decoder.layers[int(match[1])].layer_number - 1
    return Place(BY_KEY[f"decoder.layers.{_NORMS.get(match[2], match[2])}"], layer)


def _check_rows(source: Source, place: Place, tensor: LazyTensor, rows: int) -> None:
    """A vocabulary matrix must have the model's `rows`; a checkpoint may have padding behind them, but no row of a token."""
    known = source.config.vocab_size + source.extra_vocab_size
    if rows < known <= tensor.shape[0]:
        raise UserError(
            f"{source.root}: {place} has {known} rows of tokens, and the model {rows}; write {source.extra_vocab_size} as "
            "EXTRA_VOCAB_SIZE, which keeps them."
        )
    if tensor.shape[0] < rows:
        raise UserError(
            f"{source.root}: {place} has {tensor.shape[0]} rows, and vocabulary with EXTRA_VOCAB_SIZE makes {rows}; "
            "give the EXTRA_VOCAB_SIZE that the checkpoint was made with."
        )
