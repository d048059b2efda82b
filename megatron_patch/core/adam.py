"""Adam with decoupled weight decay, with the interface of Apex's FusedAdam, over this project's one-pass kernel.

Two things differ from `torch.optim.AdamW`. The step is counted in the parameter group, because megatron-core's
distributed optimizer looks for it there when it saves and loads. And `step` takes a factor for the gradients. So
unscaling, averaging over tokens and clipping need no pass of their own over all gradients.

In bf16 the fp32 weights take 2 bytes each instead of 4: see `Adam.split_parameters`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from megatron_patch.kernels.adamw import adamw_step_, join_float32, split_float32


class Adam(torch.optim.Optimizer):
    """AdamW on fp32 parameters (Loshchilov and Hutter, arXiv:1711.05101), with fp32 state.

    Attributes:
        model_copies: fp32 parameter → flat bf16 or fp16 tensor of the same size, the model's own weight. `step` writes
            it in the same pass.
        remainders: parameter whose fp32 storage was freed → int16 remainder [n]; its fp32 bits are
            (bf16 bits << 16) + remainder.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        adam_w_mode: bool = True,
        capturable: bool = False,
    ) -> None:
        assert adam_w_mode, "only decoupled weight decay is implemented"
        assert not capturable, "core from 0.17 on can record the optimizer in a CUDA graph; this project's graphs end before it"
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self.model_copies: dict[torch.Tensor, torch.Tensor] = {}
        self.remainders: dict[torch.Tensor, torch.Tensor] = {}

    def split_parameters(self) -> None:
        """Free the fp32 storage of every parameter that has a bf16 copy, and keep the 16 bits that the copy lacks.

        That is 2 bytes a parameter instead of 4, and no bit is lost. The tensor object stays, without its storage:
        megatron-core looks parameters up by it, and its gradient and its marks are attributes of it. Until the first
        step the remainders are zero, so a parameter's value is that of its copy.
        """
        for parameter, copy in self.model_copies.items():
            if copy.dtype == torch.bfloat16:
                self.remainders[parameter] = torch.zeros_like(copy, dtype=torch.int16)
                # One NaN in memory, expanded to the whole shape with stride 0. Code that reads the freed weight by
                # mistake gets NaNs, which show at once, and code that writes to it gets an error from torch.
                parameter.data = torch.full((), math.nan, device=parameter.device).expand(parameter.shape)

    def copies_were_set(self) -> None:
        """Take the bf16 copies as the parameters' values, with remainder 0. Call it after code that wrote the copies
        alone.

        A checkpoint without optimizer state is such code: it loads the model's weights.
        """
        for remainder in self.remainders.values():
            remainder.zero_()

    @torch.no_grad()
    def value_in_gradient(self, parameter: torch.Tensor) -> torch.Tensor:
        """`parameter` in fp32, of its shape: itself, or if its storage was freed, rebuilt in its gradient buffer.

        Call it between two steps only. Nobody needs the gradients there, and they are the only 4 bytes a parameter that
        are free. A checkpoint is saved this way.
        """
        if parameter not in self.remainders:
            return parameter
        assert parameter.grad is not None, "the gradient's place must have been attached"
        return join_float32(self.model_copies[parameter], self.remainders[parameter], parameter.grad.detach())

    def halves(self) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """(gradient, bf16 copy, remainder) of each parameter whose fp32 storage was freed, [n] each.

        What `value_in_gradient` rebuilds in the first is what the other two hold.
        """
        for parameter, remainder in self.remainders.items():
            assert parameter.grad is not None, "the gradient's place must have been attached"
            yield parameter.grad.detach().view(-1), self.model_copies[parameter].view(-1), remainder.view(-1)

    @torch.no_grad()
    def values_were_set(self) -> None:
        """Split the fp32 values in the gradient buffers into copies and remainders. Call it after a checkpoint was read
        there.

        It is `value_in_gradient` the other way round: that function gave the loader these buffers to read into.
        """
        for parameter, remainder in self.remainders.items():
            assert parameter.grad is not None, "the gradient's place must have been attached"
            split_float32(parameter.grad, self.model_copies[parameter], remainder)

    # The signature differs from torch's. Its Optimizer knows neither of the two numbers, and nobody here has a closure.
    @torch.no_grad()
    def step(  # type: ignore[override]
        self,
        closure: None = None,
        *,
        grad_scale: torch.Tensor | None = None,
        found_inf: torch.Tensor | None = None,
    ) -> None:
        """Update every parameter that has a gradient, each in one pass over its memory.

        The host launches the kernels and does not wait for the device.

        Args:
            grad_scale: 0-dimensional fp32 tensor on the parameters' device; gradients are multiplied by it.
            found_inf: 0-dimensional fp32 tensor there. If it is not 0 (an overflow, or a batch without a token to
                learn), nothing changes. The host does not know yet whether it is, so it counts the step in any case;
                `uncount_step` takes that back.
        """
        assert closure is None
        for group in self.param_groups:
            group["step"] = group.get("step", 0) + 1
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._step_parameter(parameter, group, grad_scale, found_inf)

    def make_state(self) -> None:
        """Allocate the moments now that the first step would allocate.

        A checkpoint is read into them, and the rehearsal of a first step wants to know what memory is left beside them.
        """
        for group in self.param_groups:
            for parameter in group["params"]:
                self._state_of(parameter)

    def _state_of(self, parameter: torch.Tensor) -> dict[str, torch.Tensor]:
        """The moments of a parameter, made on first use."""
        state = self.state[parameter]
        if not state:
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        return state

    def _step_parameter(self, parameter, group, grad_scale, found_inf) -> None:
        """Launch the kernel for one parameter. Its first tensor is the remainder where the fp32 storage was freed."""
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
        """Take back the count of a step that changed nothing, because `found_inf` was not 0.

        Bias corrections depend on the count, so a skipped step that counted would change all later ones.
        """
        for group in self.param_groups:
            group["step"] -= 1
