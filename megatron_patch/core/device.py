"""The device, decided once: CUDA with NCCL where there is a GPU, otherwise the CPU with gloo.

Importing this module prepares megatron-core for the machine; every module of this project that imports
`megatron.core` imports this one first.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import torch

from megatron_patch.core.cpu_redirection import redirect_cuda_to_cpu
from megatron_patch.core.known_warnings import silence_known_warnings

HAS_CUDA = torch.cuda.is_available()
BACKEND = "nccl" if HAS_CUDA else "gloo"

silence_known_warnings()

if not HAS_CUDA:
    redirect_cuda_to_cpu()


def local_device() -> torch.device:
    """This process's device; LOCAL_RANK, which torchrun sets, chooses among GPUs."""
    if not HAS_CUDA:
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())


def synchronize() -> None:
    """Wait until the device has done all that was asked of it; nothing on a CPU."""
    if HAS_CUDA:
        torch.cuda.synchronize()


def read_later(numbers: torch.Tensor) -> Callable[[], list[float]]:
    """Take a tensor's numbers as they are when the device gets here; the returned function waits for that, and not for
    what the device is asked for afterwards."""
    if not HAS_CUDA:
        return numbers.tolist
    host = torch.empty_like(numbers, device="cpu", pin_memory=True)
    host.copy_(numbers, non_blocking=True)
    here = torch.cuda.Event()
    here.record()

    def read() -> list[float]:
        here.synchronize()
        return host.tolist()

    return read


def max_memory_allocated() -> int:
    """Peak bytes that tensors have taken on this process's device; 0 on a CPU, where torch does not count."""
    return torch.cuda.max_memory_allocated() if HAS_CUDA else 0


def reset_peak_memory() -> None:
    """From here `max_memory_allocated` counts anew."""
    if HAS_CUDA:
        torch.cuda.reset_peak_memory_stats()


def bytes_taken(work: Callable[[], object]) -> int:
    """The most bytes that tensors take while `work` runs, beyond those that were there; 0 on a CPU. The peak counts anew."""
    reset_peak_memory()
    before = max_memory_allocated()
    work()
    return max_memory_allocated() - before


def memory_left() -> tuple[int, int]:
    """Bytes that this process can still allocate on its GPU, and the GPU's total."""
    free, total = torch.cuda.mem_get_info()
    return free + torch.cuda.memory_reserved() - torch.cuda.memory_allocated(), total


def memory_report() -> str | None:
    """Megatron-LM's phrase of `report_memory`, in MiB; None on a CPU."""
    if not HAS_CUDA:
        return None
    stats = torch.cuda.memory_stats()
    kinds = (("allocated_bytes.all.current", "allocated"), ("allocated_bytes.all.peak", "max allocated"),
             ("reserved_bytes.all.current", "reserved"), ("reserved_bytes.all.peak", "max reserved"))  # fmt: skip
    return " | ".join(f"{name}: {stats[key] / 2**20:.1f}" for key, name in kinds)
