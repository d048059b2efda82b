"""Filling one rank's part of the model with the weights of any checkpoint, without a copy on the disk."""

from __future__ import annotations

import megatron_patch.core.device  # noqa: F401, I001  prepares megatron-core for this machine

import re
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from megatron.core import parallel_state

from megatron_patch.config import PER_KV_HEAD
from megatron_patch.core import parallel
from megatron_patch.errors import UserError
from megatron_patch.formats.lazy import LazyTensor, Rows
from megatron_patch.formats.progress import Progress
from megatron_patch.llama.model_config import LlamaConfig
from megatron_patch.model.lora import is_adapter
from megatron_patch.model.packed_weight import PackedParameter, writable
from megatron_patch.weights.source import check_rest, copy_rows, open_source, share_of_rows
from megatron_patch.weights.table import BY_KEY, Place, Source

_LAYER = re.compile(r"decoder\.layers\.(\d+)\.(.+)")


def load_weights(
    path: str | Path, model: Any, gqa_layout: str = PER_KV_HEAD, fallback: LlamaConfig | None = None
) -> tuple[str, ...]:
    """Copy this rank's share of every weight into `model`, cast to its dtype. Each rank reads for itself;
    all of them call it.

    Args:
        path: a Hugging Face or Meta folder, a checkpoint's root, or one iteration's folder.
        model: one pipeline stage of a `LlamaModel`, in core's DDP wrapper or not.
        gqa_layout: the order of QKV rows in a checkpoint of 2023 that does not tell it, `per-kv-head` or `all-q-first`.
        fallback: the model, for what the checkpoint's files do not tell.

    Returns:
        What the user should know, one sentence each.

    Raises:
        UserError: the checkpoint cannot be read, is damaged, or does not have this model's shapes. Every rank raises
            it.
    """
    source = parallel.all_or_none(lambda: _copy_all(path, model, gqa_layout, fallback))
    check_rest(source, parallel.rank(), parallel.from_all_ranks)
    return source.notes


def _copy_all(path: str | Path, model: Any, gqa_layout: str, fallback: LlamaConfig | None) -> Source:
    """Copy this rank's share; returns what it was copied from."""
    source = open_source(path, fallback, gqa_layout)
    model = model.module if hasattr(model, "module") else model
    parameters = {name: weight for name, weight in model.named_parameters() if not is_adapter(name)}
    total = sum(parameter.nbytes for parameter in parameters.values())
    # Ranks read about as many bytes, so the first one's progress is shown for all.
    with Progress("reading", total) if parallel.rank() == 0 else nullcontext() as progress:
        for name, parameter in parameters.items():
            _load(source, path, model, name, parameter)
            if progress is not None:
                progress.add(parameter.nbytes)
    return source


def _load(source: Source, path: str | Path, model: Any, name: str, parameter: Any) -> None:
    """Copy this rank's share of one weight."""
    rank, size = parallel_state.get_tensor_model_parallel_rank(), parallel_state.get_tensor_model_parallel_world_size()
    place = _place(model, name)
    # core's marks: along which axis the ranks' shares are cut. Norms have none, and are whole on every rank.
    axis = getattr(parameter, "partition_dim", -1) if getattr(parameter, "tensor_model_parallel", False) else -1
    tensor = source.megatron(place)
    if place.is_vocabulary:
        _check_rows(source, place, tensor, model.vocab_rows)
        tensor = Rows(tensor, model.first_row, model.first_row + model.valid_rows)
        # The rows behind are padding, and stay zero.
        copy_rows(str(path), place, tensor, parameter[: model.valid_rows])
        return
    share = share_of_rows(place, tensor, rank, size) if axis == 0 else tensor
    with writable(parameter) if isinstance(parameter, PackedParameter) else nullcontext(parameter) as out:
        copy_rows(str(path), place, share, out, rank if axis == 1 else 0)


def _place(model: Any, name: str) -> Place:
    """What the table calls the parameter `name` of this stage.

    The model's norms are modules of their own. In checkpoints they have the names that Transformer Engine's fused
    layers give them; core's spec of the layer has the pairs.
    """
    match = _LAYER.fullmatch(name)
    if not match:
        return Place(BY_KEY[name], None)
    layer, name = model.decoder.layers[int(match[1])], match[2]
    for own, saved in layer.submodules_config.sharded_state_dict_keys_map.items():
        if name.startswith(own):
            name = saved + name.removeprefix(own)
    return Place(BY_KEY[f"decoder.layers.{name}"], layer.layer_number - 1)


def _check_rows(source: Source, place: Place, tensor: LazyTensor, rows: int) -> None:
    """Raise unless a vocabulary matrix has the model's `rows`.

    There may be padding behind them, but no row of a token.
    """
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
