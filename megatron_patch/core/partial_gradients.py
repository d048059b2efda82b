"""Gradients of which each tensor-parallel rank has computed a part: they are added up once a step.

core adds up such gradients for norms, under sequence parallelism alone. An adapter's matrix that is whole on every rank
has such a gradient in any case.
"""

from __future__ import annotations

import megatron_patch.core.device  # noqa: F401  prepares megatron-core for this machine

from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.distributed import finalize_model_grads


def mark_partial(weight: torch.nn.Parameter) -> None:
    """Say that each tensor-parallel rank computes a part of this weight's gradient."""
    weight.has_partial_gradient = True  # type: ignore[attr-defined]  # a mark of this module's own


def finalize_gradients(models: list[Any], tokens: torch.Tensor | None = None, **kwargs: Any) -> None:
    """core's reductions of gradients at a step's end, and then the sums over tensor-parallel ranks.

    Every rank calls it. The arguments are those of core's `finalize_model_grads`.
    """
    finalize_model_grads(models, tokens, **kwargs)
    group = parallel_state.get_tensor_model_parallel_group()
    if group.size() == 1:
        return
    partial = [
        parameter.main_grad
        for model in models
        for parameter in model.module.parameters()
        if getattr(parameter, "has_partial_gradient", False)
    ]
    if not partial:
        return
    together = torch.cat([gradient.view(-1) for gradient in partial])
    torch.distributed.all_reduce(together, group=group)
    torch._foreach_copy_([gradient.view(-1) for gradient in partial], list(together.split([one.numel() for one in partial])))
