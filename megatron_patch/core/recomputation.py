"""Activation checkpointing (Chen et al. 2016, arXiv:1604.06174) without random states, in the place of core's.

core keeps the random states of the forward pass and restores them before it computes again, so that dropout repeats.
LLaMA has no dropout, and that of adapters needs no random state (kernels/dropout.py). A CUDA graph cannot record the
reading of a random state, so with core's function no step that recomputes could be recorded.
"""

from __future__ import annotations

import megatron_patch.core.device  # noqa: F401  prepares megatron-core for this machine

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint


def recomputed(function: Callable[..., Any], *args: Any) -> Any:
    """`function(*args)`. autograd keeps only `args`, and the backward pass calls `function` again.

    It is reentrant, as core's is: a layer's second forward pass begins when the gradient of its output has arrived, and
    its activations are freed when that gradient has been used. So one layer's activations exist at a time. Where
    gradients are off it is a plain call.
    """
    if not torch.is_grad_enabled():
        return function(*args)
    return checkpoint(function, *args, use_reentrant=True, preserve_rng_state=False)
