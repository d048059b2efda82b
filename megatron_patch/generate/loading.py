"""A decoder from any checkpoint that this project reads: this rank's weights, and a cache in the memory beside."""

from __future__ import annotations

from contextlib import nullcontext

import torch
import torch.distributed as dist

from megatron_patch.errors import UserError
from megatron_patch.formats.lazy import Rows
from megatron_patch.formats.progress import Progress
from megatron_patch.generate.cache import BLOCK, BlockCache, block_bytes, blocks_of
from megatron_patch.generate.decoder import Decoder, DecoderWeights, LayerWeights
from megatron_patch.generate.ranks import Ranks
from megatron_patch.kernels.attention import choose_attention_backend
from megatron_patch.llama.vocabulary import padded_rows, rows_of_rank, splitting_finding
from megatron_patch.weights.source import check_rest, copy_rows, share_of_rows, split_axis
from megatron_patch.weights.table import BY_KEY, EMBEDDING, OUTPUT_LAYER, Place, Source, megatron_shape

_FINAL_NORM = "decoder.final_layernorm.weight"
_LAYER = {
    "input_norm": "decoder.layers.self_attention.linear_qkv.layer_norm_weight",
    "qkv": "decoder.layers.self_attention.linear_qkv.weight",
    "projection": "decoder.layers.self_attention.linear_proj.weight",
    "mlp_norm": "decoder.layers.mlp.linear_fc1.layer_norm_weight",
    "gate_up": "decoder.layers.mlp.linear_fc1.weight",
    "down": "decoder.layers.mlp.linear_fc2.weight",
}
# Of a GPU's memory that the weights leave: what the cache takes at most. The rest is for prompts' activations.
_CACHE_SHARE = 0.8


def load_decoder(source: Source, ranks: Ranks, dtype: torch.dtype, requests: int, longest: int) -> Decoder:
    """The decoder of one process.

    Args:
        source: an opened checkpoint.
        requests: answered at once.
        longest: tokens of a request, prompt and answer together.

    Raises:
        UserError: TP or PP does not divide the model, or memory does not hold one request.
    """
    config = source.config
    _check_division(source, ranks)
    size = config.parameter_count(source.extra_vocab_size) * dtype.itemsize // (ranks.tensor_size * ranks.stages)
    # Ranks read about as many bytes, so the first one's progress is shown for all.
    with Progress("reading", size) if ranks.tensor == ranks.stage == ranks.replica == 0 else nullcontext() as progress:
        weights = load_weights(source, ranks, dtype, progress)
    layers, groups = len(weights.layers), config.num_query_groups // ranks.tensor_size
    blocks = 1 + requests * blocks_of(longest)
    if ranks.device.type == "cuda":
        blocks = min(blocks, _blocks_that_fit(block_bytes(layers, groups, config.kv_channels, dtype), ranks.device))
    if blocks <= blocks_of(longest):
        raise UserError(
            f"{ranks.device} has room for the keys and values of {max(0, blocks - 1) * BLOCK} tokens beside the weights, and one "
            f"request may have {longest}: use shorter prompts and answers, or a higher TP on more GPUs."
        )
    cache = BlockCache.empty(layers, blocks, groups, config.kv_channels, dtype, ranks.device)
    backend, _ = choose_attention_backend(ranks.device, dtype, config.kv_channels, False)
    return Decoder(config, weights, cache, ranks, config.vocab_size + source.extra_vocab_size, backend)


def _blocks_that_fit(size: int, device: torch.device) -> int:
    free, _ = torch.cuda.mem_get_info(device)
    return int(free * _CACHE_SHARE) // size


def _check_division(source: Source, ranks: Ranks) -> None:
    config, tp, pp = source.config, ranks.tensor_size, ranks.stages
    if config.num_query_groups % tp or config.ffn_hidden_size % tp:
        wanted = f"its {config.num_query_groups} KV groups and {config.ffn_hidden_size} rows of the MLP must be multiples of it"
        raise UserError(f"TP is {tp}, which does not divide the model of {source.root}; {wanted}.")
    if too_small := splitting_finding(config.vocab_size + source.extra_vocab_size, tp):
        raise UserError(f"TP is {tp}: {too_small}")
    if config.num_layers % pp:
        raise UserError(
            f"PP is {pp}, which does not divide the {config.num_layers} layers of {source.root}; write one that does."
        )


def load_weights(source: Source, ranks: Ranks, dtype: torch.dtype, progress: Progress | None = None) -> DecoderWeights:
    """This rank's share of its stage, cast to `dtype`; all processes call it. `progress` counts its bytes.

    Raises:
        UserError: a tensor is damaged.
    """
    count = source.config.num_layers // ranks.stages
    numbers = range(ranks.stage * count, (ranks.stage + 1) * count)

    def weight(key: str, number: int | None = None) -> torch.Tensor:
        return _counted(_weight(source, ranks, dtype, Place(BY_KEY[key], number)), progress)

    def vocabulary(key: str, whole: bool) -> torch.Tensor:
        return _counted(_vocabulary(source, Place(BY_KEY[key], None), dtype, ranks, whole=whole), progress)

    layers = tuple(LayerWeights(**{field: weight(key, number) for field, key in _LAYER.items()}) for number in numbers)
    last = ranks.is_last_stage
    weights = DecoderWeights(
        layers=layers,
        embedding=vocabulary(EMBEDDING, whole=True) if ranks.is_first_stage else None,
        final_norm=weight(_FINAL_NORM) if last else None,
        output=vocabulary(OUTPUT_LAYER, whole=False) if last else None,
    )
    check_rest(source, dist.get_rank() if dist.is_initialized() else 0, ranks.from_all)
    return weights


def _counted(tensor: torch.Tensor, progress: Progress | None) -> torch.Tensor:
    """`tensor`, which has been read."""
    if progress is not None:
        progress.add(tensor.nbytes)
    return tensor


def _weight(source: Source, ranks: Ranks, dtype: torch.dtype, place: Place) -> torch.Tensor:
    shape, axis = list(megatron_shape(source.config, place.entry.key)), split_axis(place)
    if axis is not None:
        shape[axis] //= ranks.tensor_size
    out = torch.empty(shape, dtype=dtype, device=ranks.device)
    tensor = source.megatron(place)
    share = share_of_rows(place, tensor, ranks.tensor, ranks.tensor_size) if axis == 0 else tensor
    copy_rows(str(source.root), place, share, out, ranks.tensor if axis == 1 else 0)
    return out


def _vocabulary(source: Source, place: Place, dtype: torch.dtype, ranks: Ranks, *, whole: bool) -> torch.Tensor:
    """One of the two matrices over the vocabulary, with zeros behind its rows.

    Args:
        whole: for the embedding, of which one row a token is read. Of the output layer a rank has its share.
    """
    rows, hidden = source.config.vocab_size + source.extra_vocab_size, source.config.hidden_size
    size = 1 if whole else ranks.tensor_size
    first, valid = rows_of_rank(rows, size, 0 if whole else ranks.tensor)
    out = torch.zeros(padded_rows(rows, size) // size, hidden, dtype=dtype, device=ranks.device)
    copy_rows(str(source.root), place, Rows(source.megatron(place), first, first + valid), out[:valid])
    return out
