"""Which implementation of fused attention a machine gets: the fastest one that takes its GPU, dtype and head size.

PyTorch's `aten/src/ATen/native/transformers/cuda/sdp_utils.cpp` says what PyTorch's kernels take. The checks in the
libraries' interfaces say what the libraries take.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import torch

# What importing a library raises if it was built for another torch or CUDA, or if its own dependencies are missing.
_IMPORT_FAULTS = (ImportError, OSError, AttributeError, RuntimeError)


@dataclass(frozen=True)
class Library:
    """One of the flash-attn libraries.

    Attributes:
        backend: its name in `attention.BACKENDS`.
        title: its name in sentences.
        module: what is imported.
        distribution: its name in pip's list. Versions 2 and 4 share a package, and importing 4 takes seconds, so pip's
            list says which is there. Empty where finding the module is enough.
        functions: what the module must have.
    """

    backend: str
    title: str
    module: str
    distribution: str = ""
    functions: tuple[str, ...] = ("flash_attn_func", "flash_attn_varlen_func")

    def is_there(self) -> bool:
        """Whether it is installed; whether it can be imported is `library_fault`'s question."""
        if self.distribution:
            return is_installed(self.distribution)
        return self.module in sys.modules or importlib.util.find_spec(self.module) is not None


FLASH_ATTN_4 = Library("flash_attn_4", "flash-attn 4", "flash_attn.cute.interface", "flash-attn-4", ("flash_attn_func",))
FLASH_ATTN_3 = Library("flash_attn_3", "flash-attn 3", "flash_attn_interface")
FLASH_ATTN_2 = Library("flash_attn", "flash-attn 2", "flash_attn", "flash-attn")


@dataclass(frozen=True)
class _Wanted:
    """What a kernel has to take: dtype, head size, packed samples or not, and the GPU's compute capability."""

    dtype: torch.dtype
    head_dim: int
    packed: bool
    capability: tuple[int, int]

    @property
    def has_flash(self) -> bool:
        """Whether there are flash kernels for this at all.

        They take 16-bit numbers, from compute capability 8.0 on, and heads of up to 256. Chips with less shared memory
        (8.6, 8.9, 12.x) have no backward pass beyond 192.
        """
        small = self.capability in ((8, 6), (8, 9)) or self.capability[0] == 12
        half = self.dtype in (torch.bfloat16, torch.float16)
        return half and self.capability >= (8, 0) and self.head_dim <= (192 if small else 256)

    @property
    def is_aligned(self) -> bool:
        """Whether a head is a multiple of 16 bytes; PyTorch's flash kernel pads others, the libraries refuse them."""
        return self.head_dim % 8 == 0

    @property
    def has_efficient(self) -> bool:
        """Whether PyTorch's memory-efficient kernel takes it.

        It takes bf16 from compute capability 8.0 on, and heads of a multiple of what its products load at a time.
        """
        if self.dtype == torch.float32:
            return self.capability < (8, 0) or self.head_dim % 4 == 0
        return self.is_aligned and (self.dtype == torch.float16 or self.capability >= (8, 0))

    def __str__(self) -> str:
        major, minor = self.capability
        return f"{self.dtype} with head size {self.head_dim} on compute capability {major}.{minor}"


def choose_attention_backend(device: torch.device | str, dtype: torch.dtype, head_dim: int, segment_ids: bool) -> tuple[str, str]:
    """(backend, reason): the fastest fused backend that is present, and a phrase for the log that says why.

    The phrase also names each library that is installed but cannot be imported.

    Args:
        head_dim: D.
        segment_ids: whether samples are packed, so that attention is block-diagonal.
    """
    device = torch.device(device)
    if device.type != "cuda":
        return "sdpa", "PyTorch's scaled_dot_product_attention is what CPUs have"
    faults: list[str] = []
    name, why = next(_choices(_Wanted(dtype, head_dim, segment_ids, torch.cuda.get_device_capability(device)), faults))
    return name, "; ".join([why, *faults])


def _choices(wanted: _Wanted, faults: list[str]) -> Iterator[tuple[str, str]]:
    """(backend, reason) of all that can be used here, the fastest first.

    It is a generator so that no library is imported before its turn: an import can take seconds.
    """
    major = wanted.capability[0]
    libraries = wanted.has_flash and wanted.is_aligned
    short = libraries and wanted.head_dim <= 128 and not wanted.packed
    if short and major in (9, 10, 11):
        yield from _usable(FLASH_ATTN_4, faults)
    if libraries and wanted.capability == (9, 0):
        yield from _usable(FLASH_ATTN_3, faults)
    if short and major in (9, 10) and torch.backends.cudnn.is_available():
        yield "cudnn", "cuDNN through PyTorch is the fastest on compute capability 9 and 10"
    if libraries:
        yield from _usable(FLASH_ATTN_2, faults)
    if libraries and wanted.packed and importlib.util.find_spec("torch.nn.attention.varlen") is not None:
        yield "varlen", "PyTorch's flash kernel for packed samples skips what a mask would hide"
    if wanted.has_flash and not wanted.packed:
        yield "flash", "PyTorch's flash kernel; there is no flash-attn for this GPU, and cuDNN is for compute capability 9 and 10"
    if wanted.has_efficient and wanted.packed and wanted.has_flash:
        yield "efficient", "packed samples need a mask here, which PyTorch's memory-efficient kernel takes"
    if wanted.has_efficient:
        yield "efficient", f"PyTorch's memory-efficient kernel takes {wanted}, which no flash kernel does"
    yield "math", f"PyTorch's unfused attention: no fused kernel takes {wanted}"


def _usable(library: Library, faults: list[str]) -> Iterator[tuple[str, str]]:
    """The library's (backend, reason) if it is installed and can be imported. If it cannot, `faults` gets a phrase."""
    if not library.is_there():
        return
    fault = library_fault(library)
    if fault is None:
        yield library.backend, f"{library.title} is installed"
    else:
        faults.append(f"{library.title} is installed but cannot be imported: {fault}")


@functools.cache
def library_fault(library: Library) -> str | None:
    """Why an installed library cannot be used, as a phrase; None if it can."""
    try:
        module = importlib.import_module(library.module)
    except _IMPORT_FAULTS as error:
        return " ".join(str(error).split()) or type(error).__name__
    missing = [name for name in library.functions if not hasattr(module, name)]
    return f"its {library.module} has no {' and no '.join(missing)}" if missing else None


@functools.cache
def is_installed(distribution: str) -> bool:
    """Whether pip has installed a distribution of this name."""
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
