"""Activation checkpointing (Chen et al., arXiv:1604.06174) without random states, in the place of core's.

core keeps the random states of the forward pass and restores them when it computes again, for dropout. LLaMA has none, and a
CUDA graph cannot record the reading of a state, so with core's function no step that recomputes could be recorded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint


def recomputed(function: Callable[..., Any], *args: Any) -> Any:
    """`function(*args)`, of which autograd keeps only `args`; the backward pass calls `function` again.

    Reentrant, as core's is: a layer's second forward pass begins when its gradient is there, and what it computes is gone
    when that gradient has been used. Without gradients it is a plain call.
    """
    if not torch.is_grad_enabled():
        return function(*args)
    return checkpoint(function, *args, use_reentrant=True, preserve_rng_state=False)
