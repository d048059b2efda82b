"""What a pipeline stage computes in a pass, through core's model parts and DDP. pipeline.py decides when it runs."""

from __future__ import annotations

import megatron_patch.core.device  # noqa: F401  prepares megatron-core for this machine

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from megatron.core.distributed import DistributedDataParallel
from megatron.core.utils import get_model_config

from megatron_patch.core import tensor_exchange
from megatron_patch.core.parallel import Layout
from megatron_patch.core.partial_gradients import finalize_gradients
from megatron_patch.core.weight_gradients import Postponed, postponed
from megatron_patch.data.batches import Batch
from megatron_patch.train.pipeline import StageWork

# core's `forward_step_func`, as step.py makes it.
ForwardStep = Callable[[Iterator[Batch], Any], tuple[torch.Tensor, Callable]]


def stage_work(model: DistributedDataParallel, layout: Layout, forward_step: ForwardStep) -> StageWork:
    """The three functions of this rank's stage.

    The first stage sends no gradient to a stage before it. So no one waits, and it computes its weights' gradients at
    once.
    """

    def forward(batch: Batch, received: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        tensor_exchange.begin_pass()
        model.module.set_input_tensor([received])
        output, summed = forward_step(iter([batch]), model)
        if not layout.is_last_stage:
            return output, torch.zeros(2, dtype=torch.float64, device=layout.device)
        total, _, kept = summed(output)
        return get_model_config(model).grad_scale_func(total), kept

    def at_once(output: torch.Tensor, gradient: torch.Tensor | None, closes: bool, keep: bool) -> None:
        tensor_exchange.begin_pass()
        if not closes:
            with model.no_sync():
                torch.autograd.backward(output, gradient, retain_graph=keep)
            return
        torch.autograd.backward(output, gradient, retain_graph=keep)
        finalize_gradients([model], None)

    def backward(output: torch.Tensor, gradient: torch.Tensor | None, closes: bool, keep: bool) -> Postponed:
        tensor_exchange.begin_pass()
        with model.no_sync(), postponed() as later:
            torch.autograd.backward(output, gradient, retain_graph=keep)
        return later

    weights = functools.partial(_weights, model)
    return StageWork(forward, at_once if layout.is_first_stage else backward, weights)


@torch.no_grad()
def _weights(model: DistributedDataParallel, later: Postponed, closes: bool) -> None:
    """`StageWork.weights`: compute the gradients that were left. With `closes`, reduce each as soon as it is complete.

    DDP's hooks normally count the gradients that are complete and start the reductions. `backward` ran under `no_sync`,
    where they count nothing, so this function counts for them.
    """
    overlaps = closes and model.ddp_config.overlap_grad_reduce
    left = {weight for weight, _ in later}
    # The gradients of all other parameters were complete before this call.
    ready = [parameter for parameter in model.params_with_grad if parameter not in left] if overlaps else []
    for parameter in ready:
        model.param_to_bucket_group[parameter].register_grad_ready(parameter)
    for weight, work in later:
        work()
        if overlaps:
            model.param_to_bucket_group[weight].register_grad_ready(weight)
    if closes:
        finalize_gradients([model], None)
