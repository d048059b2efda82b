"""Which implementation runs, and how a Triton kernel is launched.

Every public function of this package takes `implementation`: "triton", "torch", or None, which means what
`prefer` was told, and without that Triton on a CUDA device and PyTorch elsewhere. "triton" on a CPU tensor
runs the kernel in Triton's interpreter, which is how kernels are tested without a GPU. Nothing else, and no
failure, changes the choice.
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
else:  # no wheel for this platform: only the PyTorch path can run, and asking for the other says so
    triton = None
    tl = None

IMPLEMENTATIONS = ("triton", "torch")
_preferred: str | None = None


def prefer(implementation: str | None) -> None:
    """Say what None means from now on in this process; None again: Triton on CUDA devices.

    Raises:
        ValueError: an unknown implementation.
    """
    global _preferred
    if implementation is not None and implementation not in IMPLEMENTATIONS:
        raise ValueError(f"implementation is {implementation!r}; pass one of {IMPLEMENTATIONS} or None.")
    _preferred = implementation


def prefers_torch() -> bool:
    """Whether `prefer` was told "torch", which products with a chosen algorithm obey too."""
    return _preferred == "torch"


def use_triton(implementation: str | None, tensor: torch.Tensor) -> bool:
    """Whether Triton computes what starts from `tensor`.

    Raises:
        ValueError: an unknown implementation, or Triton is asked for and not installed.
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

    Triton's own switch, the environment variable TRITON_INTERPRET, is read once for a whole process; here the
    two forms stand side by side, so that a test of a kernel changes nothing for the tests around it.
    """

    def __init__(self, function: Callable) -> None:
        self._function = function

    def __getitem__(self, grid) -> Callable:
        return functools.partial(self._launch, grid)

    @functools.cached_property
    def compiled(self):
        return triton.jit(self._function)

    @functools.cached_property
    def _interpreted(self):
        from triton.runtime.interpreter import InterpretedFunction

        return InterpretedFunction(self._function)

    def _launch(self, grid, *args: Any, **kwargs: Any) -> None:
        first = next(arg for arg in args if hasattr(arg, "data_ptr") or hasattr(arg, "base"))
        device = getattr(first, "base", first).device
        if device.type == "cuda":
            with torch.cuda.device(device):
                self.compiled[grid](*args, **kwargs)
        else:
            with _interpreted_standard_library():
                self._interpreted[grid](*args, **kwargs)


def kernel(function: Callable) -> Kernel:
    """Decorator: a function in Triton's language becomes a `Kernel`."""
    return Kernel(function)


@contextlib.contextmanager
def _interpreted_standard_library() -> Iterator[None]:
    """Let the interpreter call `tl.sum` and its kin, which are compiled functions unless TRITON_INTERPRET was set."""
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
    return 1 << (n - 1).bit_length()


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """How many programs run side by side; on a CPU a small number, so that the interpreter's loops have turns."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2


def overwrite(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor's data, to be written over, outside autograd.

    The version counter moves, so autograd raises its usual error if anything else saved the tensor for its
    backward.
    """
    torch.autograd.graph.increment_version(tensor)
    return tensor.detach()
