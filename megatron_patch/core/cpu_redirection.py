"""megatron-core assumes CUDA everywhere; on a machine without one, this makes its assumptions hold on the CPU.

Applied once, before the first import of `megatron.core`, and only where `torch.cuda.is_available()` is false. Each
redirection names the assumption that it meets. What is left out on purpose: streams of one's own and events, which
megatron-core touches only in features that this project does not switch on.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.utils._device

_CPU = torch.device("cpu")
_applied = False

# Optimizers compare `Tensor.type()` with these names (optimizer.py:671, distrib_optimizer.py:361, clip_grads.py:167).
_CUDA_TYPE_NAMES = {
    torch.float32: "torch.cuda.FloatTensor",
    torch.float16: "torch.cuda.HalfTensor",
    torch.bfloat16: "torch.cuda.BFloat16Tensor",
    torch.int32: "torch.cuda.IntTensor",
    torch.int64: "torch.cuda.LongTensor",
}


def _is_cuda(device: Any) -> bool:
    return isinstance(device, int) or str(device).startswith("cuda")


def _on_cpu(factory: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """`torch.empty(…, device="cuda", pin_memory=True)` and its siblings, on the CPU."""

    @functools.wraps(factory)
    def redirected(*args: Any, **kwargs: Any) -> torch.Tensor:
        if kwargs.get("device") is not None and _is_cuda(kwargs["device"]):
            kwargs["device"] = _CPU
        kwargs.pop("pin_memory", None)
        return factory(*args, **kwargs)

    return redirected


def _identity_compile(model: Any = None, **_: Any) -> Any:
    """Stands for `torch.compile`, as a decorator with or without arguments, and compiles nothing.

    core compiles small functions at import. On a CPU that gains nothing, costs seconds of every process's start and needs a C++
    compiler.
    """
    return model if model is not None else lambda function: function


def _tensor_type(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def type_(self: torch.Tensor, dtype: Any = None, *args: Any, **kwargs: Any) -> Any:
        if dtype is None:
            return _CUDA_TYPE_NAMES.get(self.dtype) or original(self)
        return original(self, dtype, *args, **kwargs)

    return type_


def _get_rng_state(*_: Any, **__: Any) -> torch.Tensor:
    return torch.get_rng_state()


def _set_rng_state(new_state: torch.Tensor, *_: Any, **__: Any) -> None:
    torch.set_rng_state(new_state)


def _manual_seed(seed: int) -> None:
    torch.manual_seed(seed)


def _redirect_torch() -> None:
    # `with torch.device("meta")`, in which transformers builds models, knows factories by identity and lists them at
    # its first use; the redirected ones below call the originals, so those must be the ones in its list.
    torch.utils._device._device_constructors()
    for name in ("tensor", "zeros", "ones", "empty", "full", "empty_like", "zeros_like", "arange", "eye"):
        setattr(torch, name, _on_cpu(getattr(torch, name)))
    torch.compile = _identity_compile
    # Methods are replaced on purpose; and core hands what `current_device` gives to factories alone, which take a device as well.
    torch.Tensor.type = _tensor_type(torch.Tensor.type)  # type: ignore[method-assign]
    torch.Tensor.cuda = lambda self, *args, **kwargs: self  # type: ignore[method-assign]
    torch.cuda.current_device = lambda: _CPU  # type: ignore[assignment, return-value]
    torch.cuda.synchronize = lambda *args, **kwargs: None
    # core from 0.19 on asks for it before each reduction of gradients, for events that a CUDA graph would have left there.
    torch.cuda.current_stream = lambda *args, **kwargs: torch.cpu.current_stream()  # type: ignore[assignment]
    # The CUDA generator is the CPU's default one, so core's forks of it mean something.
    torch.cuda.get_rng_state = _get_rng_state
    torch.cuda.set_rng_state = _set_rng_state
    torch.cuda.manual_seed = _manual_seed


def _redirect_core() -> None:
    """core's own accessors of the CUDA generator; `megatron.core` must be importable by now."""
    from megatron.core.tensor_parallel import random

    random._get_cuda_rng_state = _get_rng_state
    random._set_cuda_rng_state = _set_rng_state


def redirect_cuda_to_cpu() -> None:
    """Apply every redirection; a second call does nothing.

    Raises:
        AssertionError: `megatron.core` was imported first, so its decorators have already been compiled.
    """
    global _applied
    if _applied:
        return
    assert "megatron.core" not in sys.modules, "import megatron_patch.core.device before megatron.core"
    _redirect_torch()
    _redirect_core()
    _applied = True
