"""One optimizer step without needless passes over memory, and without waiting for the device.

megatron-core's optimizers hold the state and divide it over ranks. Between the last backward pass and the new weights
core makes a pass over the gradients for each of: unscale, divide by tokens, norm, clip, copy to 16 bits. Here the norm
takes one pass, and Adam's own pass does the rest.
"""

from __future__ import annotations

import megatron_patch.core.device  # noqa: F401  prepares megatron-core for this machine

from dataclasses import dataclass

import torch
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import ChainedOptimizer, get_megatron_optimizer
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.optimizer.optimizer import Float16OptimizerWithFloat16Params, MegatronOptimizer
from megatron.core.tensor_parallel.layers import (
    ColumnParallelLinear,
    RowParallelLinear,
    param_is_not_tensor_parallel_duplicate,
)
from megatron.core.transformer.module import param_is_not_shared

from megatron_patch.config import TrainConfig
from megatron_patch.core.gradient_reductions import GradientReductions
from megatron_patch.core.peer_memory import peers_of
from megatron_patch.core.transformer_config import optimizer_config
from megatron_patch.core.weight_gathers import WeightGathers
from megatron_patch.core.weight_gradients import mark_stale
from megatron_patch.kernels.adamw import grad_norm_squared


@dataclass(frozen=True)
class GradientNorm:
    """Results that stay on the device: 0-dimensional fp32 tensors.

    Attributes:
        norm: L2 norm of the mean loss's gradient over the whole model, before clipping.
        found_inf: 1 if the norm is not finite; else 0.
        unchanged: 1 if Adam is to change nothing, because the norm is not finite or the batch has no token to learn;
            else 0.
    """

    norm: torch.Tensor
    found_inf: torch.Tensor
    unchanged: torch.Tensor


def build_optimizer(config: TrainConfig, model: DistributedDataParallel) -> ChainedOptimizer:
    """core's optimizer for `model`. Adam writes the 16-bit weights in its own pass.

    With ZeRO in bf16, the fp32 weights are kept as the bf16 weights and the 16 bits that these lack. core's other
    optimizer keeps whole fp32 weights, because it saves them by itself.
    """
    optimizer = get_megatron_optimizer(optimizer_config(config), [model])
    inner = single(optimizer)
    inner.optimizer.model_copies = _model_copies(inner)
    if isinstance(inner, DistributedOptimizer):
        inner.optimizer.split_parameters()
    return optimizer


def weights_were_loaded(optimizer: ChainedOptimizer) -> None:
    """Make the model's 16-bit weights the main ones, after a loader has written them."""
    inner = single(optimizer)
    if inner.optimizer.remainders:
        inner.optimizer.copies_were_set()
    else:
        inner.reload_model_params()


def single(optimizer: ChainedOptimizer) -> MegatronOptimizer:
    """The only optimizer in core's chain; mixtures of experts have several."""
    assert len(optimizer.chained_optimizers) == 1
    return optimizer.chained_optimizers[0]


def _model_copies(optimizer: MegatronOptimizer) -> dict[torch.Tensor, torch.Tensor]:
    """fp32 main parameter, or this rank's shard of it → the 16-bit values [n] that it stands for."""
    if isinstance(optimizer, DistributedOptimizer):
        pairs = zip(optimizer.shard_fp32_from_float16_groups, optimizer.model_float16_groups)
        return {
            shard: _shard_of(optimizer, parameter) for shards, parameters in pairs for shard, parameter in zip(shards, parameters)
        }
    if isinstance(optimizer, Float16OptimizerWithFloat16Params):
        pairs = zip(optimizer.fp32_from_float16_groups, optimizer.float16_groups)
        return {main: parameter.data.view(-1) for mains, parameters in pairs for main, parameter in zip(mains, parameters)}
    return {}


def _shard_of(optimizer: DistributedOptimizer, parameter: torch.nn.Parameter) -> torch.Tensor:
    """This data-parallel rank's part [n] of a parameter, inside the buffer that the all-gather fills."""
    place = optimizer._get_model_param_range_map(parameter)["gbuf_world_in_bucket"]
    buffer, _, bucket = optimizer.model_param_gbuf_map[parameter]
    return optimizer.buffers[buffer].buckets[bucket].param_data.view(-1)[place.start : place.end]


def fused_weights(model: torch.nn.Module) -> set[torch.nn.Parameter]:
    """The weights whose gradients the matrix products write into the fp32 buffer themselves."""
    linear = [module for module in model.modules() if isinstance(module, (ColumnParallelLinear, RowParallelLinear))]
    own = {parameter for module in linear for parameter in module.parameters(recurse=False)}  # weight, A, B
    return {parameter for parameter in own if parameter.requires_grad}


def begin_step(optimizer: ChainedOptimizer, model: DistributedDataParallel, fused: set[torch.nn.Parameter]) -> None:
    """Make the gradient buffer ready. Products overwrite the part of the `fused` weights; only the rest is zeroed."""
    optimizer.zero_grad()
    others = []
    for parameter in model.params_with_grad:
        parameter.grad_added_to_main_grad = False
        if parameter in fused:
            mark_stale(parameter.main_grad)
        else:
            others.append(parameter.main_grad)
    if others:
        torch._foreach_zero_(others)
    for group in model.bucket_groups:
        group.reset()


@torch.no_grad()
def measure_gradients(optimizer: ChainedOptimizer, factor: torch.Tensor, tokens: torch.Tensor) -> GradientNorm:
    """The norm of the accumulated gradients, computed on the device.

    A batch without a token to learn has gradients of zero. Adam must not see them: it would decay weights and moments
    and count a step.

    Args:
        factor: fp32, 0-dimensional; the accumulated gradients times this are those of the mean loss.
        tokens: 0-dimensional; number of the global batch's unmasked tokens, the same on every rank.
    """
    inner = single(optimizer)
    _attach_gradients(inner)
    gradients = [one.grad for one in inner.get_parameters() if one.grad is not None and _is_counted_here(one, inner)]
    squared = grad_norm_squared(gradients, scale=factor) if gradients else torch.zeros_like(factor)
    torch.distributed.all_reduce(squared, group=inner.get_grad_stats_parallel_group())
    norm = squared.sqrt()
    infinite = ~torch.isfinite(norm)
    return GradientNorm(norm, infinite.float(), (infinite | (tokens == 0)).float())


def _is_counted_here(parameter: torch.Tensor, optimizer: MegatronOptimizer) -> bool:
    """Whether this rank counts the parameter in the gradients' norm: it has it alone, or is the first that has it.

    core's own list of these gradients has another name in each version, so its two conditions are asked here.
    """
    group = getattr(optimizer, "tp_group", None)
    return param_is_not_shared(parameter) and param_is_not_tensor_parallel_duplicate(parameter, group)


@torch.no_grad()
def update_weights(optimizer: ChainedOptimizer, measured: GradientNorm, factor: torch.Tensor, clip: float) -> None:
    """Clip the gradients and update the weights, on the device. With ZeRO each rank updates its part.

    Args:
        factor: as in `measure_gradients`.
        clip: largest allowed norm; 0 does not clip.
    """
    inner = single(optimizer)
    scale = factor * (clip / (measured.norm + 1e-6)).clamp(max=1.0) if clip > 0 else factor
    inner.optimizer.step(grad_scale=scale, found_inf=measured.unchanged)


def weight_gathers(optimizer: ChainedOptimizer, model: DistributedDataParallel, records: bool) -> WeightGathers | None:
    """The gathers by which every rank gets the weights that other ranks have updated.

    None if each rank updates all of its weights. `records`: whether the passes are CUDA graphs.
    """
    inner = single(optimizer)
    if not isinstance(inner, DistributedOptimizer) or inner.data_parallel_group.size() == 1:
        return None
    ranks = inner.data_parallel_group
    return WeightGathers(model, ranks, records, peers_of(ranks))


def gradient_reductions(optimizer: ChainedOptimizer, model: DistributedDataParallel) -> GradientReductions | None:
    """ZeRO's, in the place of DDP's own, where the ranks read each other's memory."""
    inner = single(optimizer)
    peers = peers_of(inner.data_parallel_group) if isinstance(inner, DistributedOptimizer) else None
    return None if peers is None else GradientReductions(model, peers)


def _attach_gradients(optimizer: MegatronOptimizer) -> None:
    """Point each main parameter's `.grad` at its part of the gradient buffer. No data moves."""
    if isinstance(optimizer, (DistributedOptimizer, Float16OptimizerWithFloat16Params)):
        optimizer._copy_model_grads_to_main_grads()
    else:
        optimizer.prepare_grads()


def settle(optimizer: ChainedOptimizer, found_inf: bool, tokens: int) -> None:
    """Update the loss scale and the count of steps, on the host, after a step's numbers have been read.

    A batch without `tokens` says nothing about overflows, so it does not count towards the loss scale's next growth.
    """
    inner = single(optimizer)
    if getattr(inner, "grad_scaler", None) and (tokens or found_inf):
        inner.grad_scaler.update(found_inf)
    if found_inf or not tokens:
        inner.optimizer.uncount_step()


def loss_scale(optimizer: ChainedOptimizer) -> torch.Tensor:
    """The current loss scale, fp32, 0-dimensional, on the device; 1 without fp16."""
    return single(optimizer).get_loss_scale().reshape(())
