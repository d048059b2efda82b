"""Optimizer state in a checkpoint: under ZeRO-1 each rank's part as it lies in memory, without gathering or copying it.

core's own way to the same files (`fully_reshardable`) first gathers the whole state on every rank. For LLaMA-2 7B that
takes 216 GB of host memory, and 54 GB on a GPU that is full already. The files hold one fp32 tensor for each parameter
and kind (fp32 weight, first and second moment), of the parameter's whole shape. A rank holds a range of each flattened
parameter: the end of a row, whole rows, the beginning of a row. These are rectangles of the tensor in the file, and
torch's checkpoints read and write rectangles at any place.
"""

from __future__ import annotations

import megatron_patch.core.device  # noqa: F401  prepares megatron-core for this machine

from collections.abc import Iterator
from typing import Any

import torch
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
from megatron.core.optimizer import ChainedOptimizer
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.optimizer.optimizer import FP32Optimizer

# The form that loads at any TP, PP and DP; core's default one cannot be saved at all.
SHARDING_TYPE = "fully_reshardable"
SHARDING = {"distrib_optim_sharding_type": SHARDING_TYPE}
# How the fp32 weights' names begin in a file.
_WITH_ZERO, _WITHOUT_ZERO = "optimizer.state.param.", "optimizer.state.fp32_param."


def sharded_optimizer_state(optimizer: ChainedOptimizer, weights: dict[str, Any], *, is_loading: bool) -> dict[str, Any]:
    """A sharded state dict of `optimizer`, in the form that core itself saves and loads; no memory is copied.

    Loading fills the tensors in it, and `load_optimizer_state` takes the rest. Call it between two steps only: fp32
    weights whose memory was freed are rebuilt in the gradient buffers, and are saved from there or loaded into there.

    Args:
        optimizer: core's, of this rank.
        weights: the model's sharded state dict, made from the same parameters.
        is_loading: whether the dict is for loading. The moments are allocated then, if no step has done it.
    """
    (inner,) = optimizer.chained_optimizers
    if not isinstance(inner, DistributedOptimizer):
        return optimizer.sharded_state_dict(weights, is_loading=is_loading, metadata=dict(SHARDING))
    if is_loading:
        inner.optimizer.make_state()
    # Despite its name it copies nothing: it points each `.grad` at its part of the buffer, into which weights are
    # rebuilt.
    inner._copy_model_grads_to_main_grads()
    shards = {"param_state": list(_shards(inner, weights)), "param_state_sharding_type": SHARDING_TYPE}
    return {**inner.state_dict(), **shards}


def load_optimizer_state(optimizer: ChainedOptimizer, loaded: dict[str, Any]) -> None:
    """Load what is no tensor: learning rates, steps, the loss scale.

    The tensors of `sharded_optimizer_state` have been filled by then.

    Args:
        optimizer: core's, of this rank.
        loaded: what `load_checked` returned for that dict.
    """
    (inner,) = optimizer.chained_optimizers
    if isinstance(inner, DistributedOptimizer):
        inner.optimizer.values_were_set()
        # That splits each fp32 value into a bf16 weight and a remainder, and rounds ties away from zero. The program
        # that wrote the file may have rounded ties to even, and its bf16 weights are what the model has loaded. So all
        # ranks take them from here.
        for chunk in inner.model_chunks:
            chunk.start_param_sync()
        loaded = {key: value for key, value in loaded.items() if not key.startswith("param_state")}
    optimizer.load_state_dict(_in_own_form(loaded, nested=not isinstance(inner, FP32Optimizer)))


def name_as_saved(optimizer: ChainedOptimizer, state: dict[str, Any], *, with_zero: bool) -> None:
    """Rename the tensors of `state`, so that a run loads what was saved with ZeRO-1 or without, whichever it has.

    The moments have the same names in both. The fp32 weights beside 16-bit ones are `param` with ZeRO-1 and
    `fp32_param` without. In fp32 the model's weights are the main ones: ZeRO-1's shards are views of them, and without
    ZeRO-1 they are not stored twice.

    Args:
        optimizer: this run's.
        state: what `sharded_optimizer_state` gave for loading; its entries are changed in place.
        with_zero: whether the file was saved with ZeRO-1.
    """
    (inner,) = optimizer.chained_optimizers
    if isinstance(inner, DistributedOptimizer) == with_zero:
        return
    if isinstance(inner, DistributedOptimizer) and not (inner.config.bf16 or inner.config.fp16):
        state["param_state"] = [shard for shard in state["param_state"] if not shard.key.startswith(_WITH_ZERO)]
    before, after = (_WITHOUT_ZERO, _WITH_ZERO) if with_zero else (_WITH_ZERO, _WITHOUT_ZERO)
    for entry in nested_values(state):
        if isinstance(entry, (ShardedTensor, ShardedTensorFactory)) and entry.key.startswith(before):
            entry.key = after + entry.key.removeprefix(before)


def stored_groups(loaded: dict[str, Any]) -> Any:
    """The parameter groups of what was loaded, in either form; whatever stands there instead in a damaged file."""
    inside = loaded.get("optimizer", loaded)
    return inside.get("param_groups") if isinstance(inside, dict) else None


def _in_own_form(loaded: dict[str, Any], *, nested: bool) -> dict[str, Any]:
    """`loaded` in the form of this run's optimizer.

    core's fp32 one without ZeRO-1 keeps its groups at the top, the others keep them below `optimizer`.
    """
    inside = loaded.get("optimizer")
    if nested and inside is None:
        return {"optimizer": {"param_groups": loaded["param_groups"]}}
    if not nested and inside is not None:
        # Which parameters a group has depends on this run's layout, so it is not taken from the file.
        groups = [{**stored, **own} for stored, own in zip(inside["param_groups"], loaded["param_groups"], strict=True)]
        return {"state": loaded["state"], "param_groups": groups}
    return loaded


def _shards(optimizer: DistributedOptimizer, weights: dict[str, Any]) -> Iterator[ShardedTensor]:
    """This rank's part of every parameter's fp32 weight and moments."""
    by_parameter = {id(entry.data): entry for entry in nested_values(weights) if hasattr(entry, "data")}
    for ranges in optimizer.gbuf_ranges:
        for buckets in ranges.values():
            for bucket in buckets:
                for parameter, where in bucket["param_map"].items():
                    flat = optimizer._get_main_param_and_optimizer_states(parameter)
                    # core keeps this tensor object, whose memory was freed (`core/adam.py`): bf16 weight and remainder
                    # hold its bits. Gradients mean nothing between two steps, so their buffer is the 4 bytes a
                    # parameter to rebuild it in.
                    flat["param"] = optimizer.optimizer.value_in_gradient(flat["param"])
                    for name, shard in flat.items():
                        entry = by_parameter[id(parameter)]
                        yield from _rectangles_of(parameter, entry, name, shard.detach().view(-1), where["param"].start)


def _rectangles_of(
    parameter: torch.Tensor, entry: ShardedTensor | ShardedTensorFactory, name: str, shard: torch.Tensor, start: int
) -> Iterator[ShardedTensor]:
    """`shard` [n], elements start … start + n of this rank's flattened parameter, as rectangles of the whole tensor.

    `entry` is core's description of the parameter. For gate and up it is a factory of two: a rank has its rows of gate
    and then its rows of up, while in the file all of gate comes before all of up.
    """
    parts = nested_values(entry.build()) if isinstance(entry, ShardedTensorFactory) else [entry]
    for part in parts:
        before = part.data.storage_offset() - parameter.storage_offset()
        first, last = max(start, before), min(start + shard.numel(), before + part.data.numel())
        width = part.local_shape[-1] if len(part.local_shape) == 2 else part.data.numel()
        for row, column, rows, columns in rectangles(first - before, last - before, width):
            at = before + row * width + column - start
            offset = (row, column) if len(part.local_shape) == 2 else (column,)
            shape = (1,) * part.prepend_axis_num + ((rows, columns) if len(part.local_shape) == 2 else (columns,))
            offset = (0,) * part.prepend_axis_num + offset
            yield ShardedTensor(
                key=f"optimizer.state.{name}.{part.key}",
                data=shard[at : at + rows * columns].view(shape),
                dtype=shard.dtype,
                local_shape=shape,
                global_shape=part.global_shape,
                global_offset=tuple(map(sum, zip(part.global_offset, offset))),
                axis_fragmentations=None,  # core's word for: cut in no regular grid
                # The first of equal copies on TP ranks is written. Data-parallel ranks have different parts, so each is
                # a first.
                replica_id=(*part.replica_id[:2], 0),
            )


def rectangles(first: int, last: int, width: int) -> Iterator[tuple[int, int, int, int]]:
    """Elements first … last of a row-major matrix with rows of `width`, as (row, column, rows, columns).

    There are at most three, in this order: the end of a row, whole rows, the beginning of a row.
    """
    while first < last:
        row, column = divmod(first, width)
        if column or last - first < width:
            rows, columns = 1, min(width - column, last - first)
        else:
            rows, columns = (last - first) // width, width
        yield row, column, rows, columns
        first += rows * columns
