"""RMSNorm as a module for core's norm slots, over this project's kernel."""

from __future__ import annotations

import megatron_patch.core.device  # noqa: F401  prepares megatron-core for this machine

import torch
from megatron.core.transformer import TransformerConfig

from megatron_patch.core.weight_gradients import direct_main_grad
from megatron_patch.kernels.rms_norm import add_rms_norm, rms_norm, rms_norm_residual


class RMSNorm(torch.nn.Module):
    """Root-mean-square norm (Zhang & Sennrich 2019, arXiv:1910.07467) over the last dimension of [S, B, H].

    Under sequence parallelism each rank sees a part of the tokens, so the weight's gradient must be summed over TP
    ranks. core does that for weights that are marked, and this one marks its weight. core's own torch norm refuses that
    case.
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        device = "cpu" if config.use_cpu_initialization else torch.cuda.current_device()
        self.weight = torch.nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype, device=device))
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]  # core's mark

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """[S, B, H] → [S, B, H]."""
        return rms_norm(hidden, self.weight, self.eps, weight_grad=direct_main_grad(self.weight))

    def with_residual(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(norm of `hidden`, `hidden`), each [S, B, H]. The norm's backward kernel adds their two gradients."""
        return rms_norm_residual(hidden, self.weight, self.eps, weight_grad=direct_main_grad(self.weight))

    def add(self, hidden: torch.Tensor, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(norm of `hidden` + `residual`, the sum), each [S, B, H], in one kernel."""
        return add_rms_norm(hidden, residual, self.weight, self.eps, weight_grad=direct_main_grad(self.weight))
