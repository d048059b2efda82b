"""RMSNorm as a megatron-core layer-spec slot, over this project's kernel."""

from __future__ import annotations

import megatron_patch.core.device  # noqa: F401  prepares megatron-core for this machine

import torch
from megatron.core.transformer import TransformerConfig

from megatron_patch.core.weight_gradients import direct_main_grad
from megatron_patch.kernels.rms_norm import add_rms_norm, rms_norm, rms_norm_residual


class RMSNorm(torch.nn.Module):
    """Root-mean-square norm (Zhang and Sennrich, arXiv:1910.07467) over the last dimension of [S, B, H].

    Its weight is marked for sequence parallelism, where each rank sees only part of the tokens and core sums the
    weight's gradient; core's own torch norm refuses that case.
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        device = "cpu" if config.use_cpu_initialization else torch.cuda.current_device()
        self.weight = torch.nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype, device=device))
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]  # core's mark

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return rms_norm(hidden, self.weight, self.eps, weight_grad=direct_main_grad(self.weight))

    def with_residual(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(norm of `hidden`, `hidden`), whose two gradients meet in one kernel on the way back."""
        return rms_norm_residual(hidden, self.weight, self.eps, weight_grad=direct_main_grad(self.weight))

    def add(self, hidden: torch.Tensor, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(norm of the sum, the sum) in one kernel."""
        return add_rms_norm(hidden, residual, self.weight, self.eps, weight_grad=direct_main_grad(self.weight))
