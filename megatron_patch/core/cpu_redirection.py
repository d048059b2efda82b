"""megatron-core assumes CUDA everywhere. On a machine without it, this module makes the assumptions hold on the CPU.

`core.device` applies it once, before the first import of `megatron.core`, and only where `torch.cuda.is_available()` is
false. Each redirection says which assumption it meets. Streams of one's own and events are left out on purpose:
megatron-core touches them only in features that this project does not switch on.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.utils._device

from megatron_patch.kernels.products import is_wide_faster

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
    """Whether an argument `device` means a GPU: "cuda", "cuda:1", a torch.device, or a bare number."""
    return isinstance(device, int) or str(device).startswith("cuda")


def _on_cpu(factory: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """A torch factory that puts on the CPU what is asked for on a GPU, and that ignores `pin_memory`."""

    @functools.wraps(factory)
    def redirected(*args: Any, **kwargs: Any) -> torch.Tensor:
        if kwargs.get("device") is not None and _is_cuda(kwargs["device"]):
            kwargs["device"] = _CPU
        kwargs.pop("pin_memory", None)
        return factory(*args, **kwargs)

    return redirected


def _identity_compile(model: Any = None, **_: Any) -> Any:
    """In the place of `torch.compile`, as a decorator with or without arguments. It compiles nothing.

    core compiles small functions when it is imported. On a CPU that gains nothing, costs each process seconds at its
    start and needs a C++ compiler.
    """
    return model if model is not None else lambda function: function


def _exempt_from_compilation(kind: type) -> None:
    """Tell a class's methods that torch exempts from compilation that they are: nothing is compiled here.

    Each would import torch's compiler at its first call to be told (`torch/_compile.py`). That takes two seconds.
    """
    for method in vars(kind).values():
        if (exempt := getattr(method, "__wrapped__", None)) is not None:
            setattr(exempt, "__dynamo_disable", exempt)  # noqa: B010  in this way no class mangles the name


def _tensor_type(original: Callable[..., Any]) -> Callable[..., Any]:
    """`Tensor.type` that calls a CPU tensor what core's optimizers expect, "torch.cuda.FloatTensor" and its kin."""

    @functools.wraps(original)
    def type_(self: torch.Tensor, dtype: Any = None, *args: Any, **kwargs: Any) -> Any:
        if dtype is None:
            return _CUDA_TYPE_NAMES.get(self.dtype) or original(self)
        return original(self, dtype, *args, **kwargs)

    return type_


def _wide(matmul: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """`torch.matmul` in float32 where this CPU lacks arithmetic for the factors; core assumes that all kinds are fast.

    The head, and layers in an evaluation, are core's own products. The others are `kernels/products.py`'s.
    """

    @functools.wraps(matmul)
    def multiplied(a: torch.Tensor, b: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if is_wide_faster(a) and a.dtype == b.dtype:
            return matmul(a.float(), b.float(), *args, **kwargs).to(a.dtype)
        return matmul(a, b, *args, **kwargs)

    return multiplied


def _get_rng_state(*_: Any, **__: Any) -> torch.Tensor:
    """In the place of torch.cuda's function of this name, whose argument is a device."""
    return torch.get_rng_state()


def _set_rng_state(new_state: torch.Tensor, *_: Any, **__: Any) -> None:
    """In the place of torch.cuda's function of this name, whose second argument is a device."""
    torch.set_rng_state(new_state)


def _manual_seed(seed: int) -> None:
    """In the place of torch.cuda.manual_seed."""
    torch.manual_seed(seed)


def _redirect_torch() -> None:
    """Replace torch's factories, `compile`, and the functions of torch.cuda that core calls."""
    # transformers builds models inside `with torch.device("meta")`. That context lists the factories that it changes at
    # its first use, and knows them by identity. The redirected factories call the originals, so the list must be made
    # of the originals, before they are replaced.
    torch.utils._device._device_constructors()
    for name in ("tensor", "zeros", "ones", "empty", "full", "empty_like", "zeros_like", "arange", "eye"):
        setattr(torch, name, _on_cpu(getattr(torch, name)))
    torch.compile = _identity_compile
    _exempt_from_compilation(torch.optim.Optimizer)
    # mypy is told that methods are replaced on purpose. `current_device` may give a device where torch gives a number:
    # core hands its result to factories alone, which take either.
    torch.matmul = _wide(torch.matmul)
    torch.Tensor.matmul = _wide(torch.Tensor.matmul)  # type: ignore[method-assign]
    torch.Tensor.type = _tensor_type(torch.Tensor.type)  # type: ignore[method-assign]
    torch.Tensor.cuda = lambda self, *args, **kwargs: self  # type: ignore[method-assign]
    torch.cuda.current_device = lambda: _CPU  # type: ignore[assignment, return-value]
    torch.cuda.synchronize = lambda *args, **kwargs: None
    # From 0.19 on core asks for the current stream before each reduction of gradients, and lets it wait for graphs.
    torch.cuda.current_stream = lambda *args, **kwargs: torch.cpu.current_stream()  # type: ignore[assignment]
    # core forks the CUDA generator, so that ranks initialize different weights. Here it forks the CPU's default one.
    torch.cuda.get_rng_state = _get_rng_state
    torch.cuda.set_rng_state = _set_rng_state
    torch.cuda.manual_seed = _manual_seed


def _redirect_core() -> None:
    """Replace core's own functions that read and set the CUDA generator. It imports core, so it runs last."""
    from megatron.core.tensor_parallel import random

    random._get_cuda_rng_state = _get_rng_state
    random._set_cuda_rng_state = _set_rng_state


def redirect_cuda_to_cpu() -> None:
    """Apply every redirection. A second call does nothing.

    Raises:
        AssertionError: `megatron.core` was imported before, so its decorators have called the real `torch.compile`.
    """
    global _applied
    if _applied:
        return
    assert "megatron.core" not in sys.modules, "import megatron_patch.core.device before megatron.core"
    _redirect_torch()
    _redirect_core()
    _applied = True
