"""The device, decided once: CUDA with NCCL where there is a GPU, otherwise the CPU with gloo.

Importing this module prepares torch and megatron-core for the machine. Every module of this project that imports
`megatron.core` imports this one first; isort has a section of its own for it.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator

import torch

from megatron_patch.core.cpu_redirection import redirect_cuda_to_cpu
from megatron_patch.core.known_warnings import silence_known_warnings

HAS_CUDA = torch.cuda.is_available()
BACKEND = "nccl" if HAS_CUDA else "gloo"


@contextlib.contextmanager
def _left_out(name: str) -> Iterator[None]:
    """Let an import of the package `name` fail inside, as if it was not installed."""
    if name in sys.modules:
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[name]


silence_known_warnings()

# core asks for wandb to type its inference engine's writer, which takes as long as torch and core together, and for
# TensorBoard to type its timers'. Here the sinks import them where a run asks for them, in the one process that writes.
with _left_out("wandb"), _left_out("torch.utils.tensorboard"):
    if not HAS_CUDA:
        redirect_cuda_to_cpu()
    import megatron.core.inference.contexts  # noqa: F401


def local_device() -> torch.device:
    """This process's device. torchrun sets LOCAL_RANK, which chooses among the GPUs; 0 without torchrun."""
    if not HAS_CUDA:
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())


def synchronize() -> None:
    """Wait until the device has done all that was launched. On a CPU it does nothing."""
    if HAS_CUDA:
        torch.cuda.synchronize()


def read_later(numbers: torch.Tensor) -> Callable[[], list[float]]:
    """Read a tensor without waiting for what is launched after this call.

    The numbers are copied to the host when the device comes to this place in its queue. The returned function waits for
    that copy and returns the numbers. So the device keeps working on later launches while the host reads.
    """
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
    """The most bytes that tensors have taken on this process's GPU so far; 0 on a CPU, where torch does not count."""
    return torch.cuda.max_memory_allocated() if HAS_CUDA else 0


def reset_peak_memory() -> None:
    """Let `max_memory_allocated` begin anew, from what tensors take now."""
    if HAS_CUDA:
        torch.cuda.reset_peak_memory_stats()


def bytes_taken(work: Callable[[], object]) -> int:
    """The most bytes that tensors take while `work` runs, beyond what they took before; 0 on a CPU.

    `max_memory_allocated` begins anew.
    """
    reset_peak_memory()
    before = max_memory_allocated()
    work()
    return max_memory_allocated() - before


def memory_left() -> tuple[int, int]:
    """(bytes that this process can still allocate on its GPU, bytes of the GPU).

    What torch has reserved and given to no tensor counts as free.
    """
    free, total = torch.cuda.mem_get_info()
    return free + torch.cuda.memory_reserved() - torch.cuda.memory_allocated(), total


def memory_report() -> str | None:
    """The phrase that Megatron-LM's `report_memory` prints, in MiB; None on a CPU."""
    if not HAS_CUDA:
        return None
    stats = torch.cuda.memory_stats()
    kinds = (("allocated_bytes.all.current", "allocated"), ("allocated_bytes.all.peak", "max allocated"),
             ("reserved_bytes.all.current", "reserved"), ("reserved_bytes.all.peak", "max reserved"))  # fmt: skip
    return " | ".join(f"{name}: {stats[key] / 2**20:.1f}" for key, name in kinds)
