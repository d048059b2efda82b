"""Adam with decoupled weight decay in the manner of Apex's FusedAdam, over this project's one-pass kernel.

Two things differ from `torch.optim.AdamW`: the step is counted in the parameter group, which is where
megatron-core's distributed optimizer looks for it when it saves and loads, and `step` takes the gradient's factor, so
that unscaling, averaging over tokens and clipping cost no pass of their own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch

from megatron_patch.kernels.adamw import adamw_step_, join_float32, split_float32


class Adam(torch.optim.Optimizer):
    """AdamW on fp32 parameters (Loshchilov and Hutter, arXiv:1711.05101), with fp32 state.

    Attributes:
        model_copies: from a parameter to the bf16 or fp16 tensor of the same size that its new value is written to.
        remainders: from a parameter without memory of its own to the int16 tensor that makes its value of its bf16 copy.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        adam_w_mode: bool = True,
    ) -> None:
        assert adam_w_mode, "only decoupled weight decay is implemented"
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self.model_copies: dict[torch.Tensor, torch.Tensor] = {}
        self.remainders: dict[torch.Tensor, torch.Tensor] = {}

    def split_parameters(self) -> None:
        """Keep only what the bf16 copies lack of their parameters: 2 bytes each for 4, and not a digit less.

        A parameter stays what megatron-core tells apart, and keeps gradient and marks; its memory goes. Whoever reads it finds
        NaN everywhere, and writing is an error. Its value is its copy's until the first step: call `copies_were_set`
        whenever others have written those.
        """
        for parameter, copy in self.model_copies.items():
            if copy.dtype == torch.bfloat16:
                self.remainders[parameter] = torch.zeros_like(copy, dtype=torch.int16)
                parameter.data = torch.full((), math.nan, device=parameter.device).expand(parameter.shape)

    def copies_were_set(self) -> None:
        """The bf16 copies are now the parameters' values."""
        for remainder in self.remainders.values():
            remainder.zero_()

    @torch.no_grad()
    def value_in_gradient(self, parameter: torch.Tensor) -> torch.Tensor:
        """`parameter` in fp32: itself, or where it is split, written over its gradient, which no one needs between two steps."""
        if parameter not in self.remainders:
            return parameter
        assert parameter.grad is not None, "the gradient's place must have been attached"
        return join_float32(self.model_copies[parameter], self.remainders[parameter], parameter.grad.detach())

    @torch.no_grad()
    def values_were_set(self) -> None:
        """Take the split parameters' new values from where `value_in_gradient` puts them."""
        for parameter, remainder in self.remainders.items():
            assert parameter.grad is not None, "the gradient's place must have been attached"
            split_float32(parameter.grad, self.model_copies[parameter], remainder)

    # torch's Optimizer knows neither of the two numbers, and the closure that it allows would need a second pass.
    @torch.no_grad()
    def step(  # type: ignore[override]
        self,
        closure: None = None,
        *,
        grad_scale: torch.Tensor | None = None,
        found_inf: torch.Tensor | None = None,
    ) -> None:
        """Update every parameter that has a gradient, in one pass over its memory each.

        Args:
            grad_scale: 0-dimensional fp32 tensor on the parameters' device; gradients are multiplied by it.
            found_inf: likewise; where it is not 0 nothing changes (an overflow, or a batch without a token to learn), though the
                step is counted (see `uncount_step`).
        """
        assert closure is None
        for group in self.param_groups:
            group["step"] = group.get("step", 0) + 1
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._step_parameter(parameter, group, grad_scale, found_inf)

    def make_state(self) -> None:
        """Allocate now what the first step would."""
        for group in self.param_groups:
            for parameter in group["params"]:
                self._state_of(parameter)

    def _state_of(self, parameter: torch.Tensor) -> dict[str, torch.Tensor]:
        state = self.state[parameter]
        if not state:
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        return state

    def _step_parameter(self, parameter, group, grad_scale, found_inf) -> None:
        state = self._state_of(parameter)
        adamw_step_(
            self.remainders.get(parameter, parameter.detach()).view(-1),
            state["exp_avg"].view(-1),
            state["exp_avg_sq"].view(-1),
            parameter.grad.detach().view(-1),
            self.model_copies.get(parameter),
            lr=group["lr"],
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            eps=group["eps"],
            weight_decay=group["weight_decay"],
            step=group["step"],
            grad_scale=grad_scale,
            found_inf=found_inf,
        )

    def uncount_step(self) -> None:
        """Take back the count of a step that `found_inf` turned into nothing."""
        for group in self.param_groups:
            group["step"] -= 1
