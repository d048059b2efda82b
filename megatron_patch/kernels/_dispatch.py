"""Which implementation runs, and how a Triton kernel is launched.

Public functions that have a kernel take `implementation`: "triton", "torch" or None. None means what `prefer` was told;
if it was told nothing, Triton on a CUDA device and PyTorch elsewhere. "triton" on a CPU tensor runs the kernel in
Triton's interpreter: kernels are tested without a GPU that way. Nothing else changes the choice. A kernel that fails
raises, and PyTorch does not take its place.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import torch

if importlib.util.find_spec("triton") is not None:
    import triton
    import triton.language as tl
else:  # There is no wheel for this platform. PyTorch computes, and whoever asks for "triton" gets a ValueError.
    triton = None
    tl = None

IMPLEMENTATIONS = ("triton", "torch")
_preferred: str | None = None


def prefer(implementation: str | None) -> None:
    """Say what `implementation=None` means from now on in this process. None restores: Triton on CUDA devices.

    Raises:
        ValueError: the implementation is unknown.
    """
    global _preferred
    if implementation is not None and implementation not in IMPLEMENTATIONS:
        raise ValueError(f"implementation is {implementation!r}; pass one of {IMPLEMENTATIONS} or None.")
    _preferred = implementation


def prefers_torch() -> bool:
    """Whether `prefer` was told "torch". Then `products` calls torch too, and not cuBLASLt."""
    return _preferred == "torch"


def use_triton(implementation: str | None, tensor: torch.Tensor) -> bool:
    """Whether Triton computes an operation whose first input is `tensor`.

    Raises:
        ValueError: the implementation is unknown, or it is "triton" and Triton is not installed.
    """
    implementation = implementation or _preferred
    if implementation is None:
        return tensor.is_cuda
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"implementation is {implementation!r}; pass one of {IMPLEMENTATIONS} or None.")
    if implementation == "triton" and triton is None:
        raise ValueError("implementation is 'triton', which is not installed; run `pip install triton` or pass 'torch'.")
    return implementation == "triton"


class Kernel:
    """A Triton kernel that is compiled for CUDA tensors and interpreted for CPU tensors.

    Triton's own switch is the environment variable TRITON_INTERPRET, which it reads once a process. Here both forms
    exist side by side, so that a test in the interpreter changes nothing for the tests around it.
    """

    def __init__(self, function: Callable) -> None:
        self._function = function

    def __getitem__(self, grid) -> Callable:
        return functools.partial(self._launch, grid)

    @functools.cached_property
    def compiled(self):
        """triton.jit's function, made at the first launch: importing this package must work without Triton."""
        return triton.jit(self._function)

    @functools.cached_property
    def _interpreted(self):
        from triton.runtime.interpreter import InterpretedFunction

        return InterpretedFunction(self._function)

    def _launch(self, grid, *args: Any, **kwargs: Any) -> None:
        # The first tensor decides. Triton's TensorDescriptor, which benchmarks pass, has its tensor in `base`.
        first = next(arg for arg in args if hasattr(arg, "data_ptr") or hasattr(arg, "base"))
        device = getattr(first, "base", first).device
        if device.type == "cuda":
            with torch.cuda.device(device):  # Triton launches on the current device, wherever the tensors are
                self.compiled[grid](*args, **kwargs)
        else:
            with _interpreted_standard_library():
                self._interpreted[grid](*args, **kwargs)


def kernel(function: Callable) -> Kernel:
    """Decorator: a function in Triton's language becomes a `Kernel`."""
    return Kernel(function)


@contextlib.contextmanager
def _interpreted_standard_library() -> Iterator[None]:
    """Let the interpreter call `tl.sum` and its kin.

    Without TRITON_INTERPRET triton.language holds them as functions to be compiled, which the interpreter cannot call.
    So they are interpreted functions inside this context, and what they were afterwards.
    """
    from triton.runtime.interpreter import InterpretedFunction
    from triton.runtime.jit import JITFunction

    compiled = {name: member for name, member in vars(tl).items() if isinstance(member, JITFunction)}
    for name, member in compiled.items():
        setattr(tl, name, InterpretedFunction(member.fn))
    try:
        yield
    finally:
        for name, member in compiled.items():
            setattr(tl, name, member)


def next_power_of_two(n: int) -> int:
    """The smallest power of two that is n or more: the size of a Triton block that holds n elements."""
    return 1 << (n - 1).bit_length()


def ceil_div(a: int, b: int) -> int:
    """a / b, rounded up: how many blocks of b hold a elements."""
    return -(-a // b)


def launch_options(tensor: torch.Tensor, overlap: bool) -> dict[str, bool]:
    """Triton's word for a launch that may begin before the one before it has ended; its interpreter knows none."""
    return {"launch_pdl": True} if overlap and tensor.is_cuda else {}


def is_wide_faster(tensor: torch.Tensor) -> bool:
    """Whether products of such tensors take less time in float32, rounded once: where a CPU lacks arithmetic for them.

    float16 is multiplied ten times as slowly there. So is bfloat16 without AVX-512, and up to 26 times as slowly.
    """
    is_slow = tensor.dtype == torch.float16
    is_slow |= tensor.dtype == torch.bfloat16 and torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "AVX2")
    return is_slow and not tensor.is_cuda


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """How many programs run side by side on a GPU; 2 on a CPU, so that tests see loops of more than one turn."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2


def overwrite(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor's data as a tensor that may be written outside autograd.

    The version counter is raised. So if another function saved the tensor for its backward, autograd raises its
    in-place error there, and no gradient is computed from what was written over it.
    """
    torch.autograd.graph.increment_version(tensor)
    return tensor.detach()
