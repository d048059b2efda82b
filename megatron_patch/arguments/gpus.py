"""The machine's GPUs as the driver has them, and whether the installed torch can use them. Imports no torch.

A torch without CUDA sees no GPU and says nothing, and so does one for a newer CUDA than the driver's. A run would then
train on the CPU.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

_NO_DEVICE = 100  # cuInit's answer where CUDA_VISIBLE_DEVICES hides every GPU, or there is none
# The first driver of each CUDA, as its release notes have it; a driver runs every minor release of its major one.
_DRIVERS = {12: "525.60", 13: "580.65"}
_CAPABILITY = (75, 76)  # cuDeviceGetAttribute's numbers: major and minor
_FP8 = 89  # ten times the compute capability from which on tensor cores multiply FP8 numbers
EMULATION = "MEGATRON_PATCH_EMULATE_FP8"  # tests set it: FP8 numbers are multiplied in float32 then, on any machine
_ON_PURPOSE = "to train on the CPU on purpose, put CUDA_VISIBLE_DEVICES= in front of the command"


@dataclass(frozen=True)
class Driver:
    """NVIDIA's driver.

    Attributes:
        gpus: how many GPUs a process that starts now sees.
        cuda: the newest CUDA that it runs, 13000 for 13.0; 0 if unknown.
        error: what cuInit returns; 0 for no error.
        release: such as 550.54; empty if unknown.
        memory: bytes of the visible GPU that has the least; 0 if unknown.
        name: of the first visible GPU, `NVIDIA H200`; empty if unknown.
        capability: the least compute capability of the visible GPUs, 90 for 9.0; 0 if unknown.
    """

    gpus: int
    cuda: int = 0
    error: int = 0
    release: str = ""
    memory: int = 0
    name: str = ""
    capability: int = 0


@dataclass(frozen=True)
class Torch:
    """The installed torch: its version, 2.13.0+cpu, and the CUDA that it was built for, None without."""

    version: str
    cuda: str | None


def find_driver() -> Driver:
    """Ask libcuda.so.1, which respects CUDA_VISIBLE_DEVICES. Without that library there is no GPU to use."""
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return Driver(0)
    count, cuda = ctypes.c_int(0), ctypes.c_int(0)
    library.cuDriverGetVersion(ctypes.byref(cuda))
    error = library.cuInit(0)
    if error == 0:
        error = library.cuDeviceGetCount(ctypes.byref(count))
    # A driver that does not start counts none; the kernel's part of it has a folder for each GPU.
    gpus = count.value if error in (0, _NO_DEVICE) else len(list(Path("/proc/driver/nvidia/gpus").glob("*")))
    memory = _least_memory(library, gpus) if error == 0 else 0
    name = _first_name(library) if error == 0 and gpus else ""
    capability = _least_capability(library, gpus) if error == 0 else 0
    return Driver(gpus, cuda.value, error, _release(), memory, name, capability)


def _least_memory(library: ctypes.CDLL, gpus: int) -> int:
    """Bytes of the visible GPU that has the least; 0 if the driver does not say."""
    found = []
    for number in range(gpus):
        device, size = ctypes.c_int(0), ctypes.c_size_t(0)
        if library.cuDeviceGet(ctypes.byref(device), number) or library.cuDeviceTotalMem_v2(ctypes.byref(size), device):
            return 0
        found.append(size.value)
    return min(found, default=0)


def _least_capability(library: ctypes.CDLL, gpus: int) -> int:
    """Ten times the least compute capability of the visible GPUs; 0 if the driver does not say."""
    found = []
    for number in range(gpus):
        device, value, parts = ctypes.c_int(0), ctypes.c_int(0), []
        for attribute in _CAPABILITY:
            if library.cuDeviceGet(ctypes.byref(device), number) or library.cuDeviceGetAttribute(
                ctypes.byref(value), attribute, device
            ):
                return 0
            parts.append(value.value)
        found.append(10 * parts[0] + parts[1])
    return min(found, default=0)


def _first_name(library: ctypes.CDLL) -> str:
    """The first visible GPU's name; empty if the driver does not say."""
    device, name = ctypes.c_int(0), ctypes.create_string_buffer(256)
    if library.cuDeviceGet(ctypes.byref(device), 0) or library.cuDeviceGetName(name, len(name), device):
        return ""
    return name.value.decode("utf-8", errors="replace")


def _release() -> str:
    try:
        text = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    found = re.search(r"\b(\d{3,4}\.\d+(?:\.\d+)?)\b", text)
    return found[1] if found else ""


def find_torch() -> Torch | None:
    """What torch's version file says; None where torch is not installed."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    text = (Path(spec.origin).parent / "version.py").read_text(encoding="utf-8")
    said = dict(re.findall(r"^(__version__|cuda)(?:\s*:[^=]*)?\s*=\s*(.*?)\s*$", text, re.MULTILINE))
    version, cuda = (said.get(name, "None").strip("'\"") for name in ("__version__", "cuda"))
    return Torch(version, None if cuda == "None" else cuda)


def visible_gpus() -> int:
    """How many GPUs a process that starts now can use; 0 if torch is a build without CUDA."""
    torch, driver = find_torch(), find_driver()
    return driver.gpus if torch is not None and torch.cuda is not None and not driver.error else 0


def lacks_fp8(driver: Driver) -> bool:
    """Whether a visible GPU is known to have no FP8 tensor cores."""
    return bool(driver.gpus) and 0 < driver.capability < _FP8


def fp8_finding(driver: Driver, usable: int) -> str | None:
    """What is wrong with PR fp8 on this machine, of whose GPUs so many are `usable`; None if nothing is."""
    if os.environ.get(EMULATION) or (usable and driver.capability >= _FP8):
        return None
    if not usable:
        return (
            "it needs a GPU of compute capability 8.9 or higher, such as an H100 or an H20, and there is none here: write bf16."
        )
    return (
        "it needs GPUs of compute capability 8.9 or higher, such as an H100 or an H20, and this machine's "
        f"{driver.name} has {driver.capability / 10:.1f}: write bf16."
    )


def unusable_gpus(driver: Driver, torch: Torch | None) -> str | None:
    """The sentence about GPUs that this torch cannot use; None if it can use them, or if none is visible.

    It says how many there are, with which driver, what torch needs, and what to install.
    """
    if not driver.gpus or torch is None or driver.error == _NO_DEVICE:
        return None
    has = f"This machine has {driver.gpus} GPU{'s' if driver.gpus > 1 else ''} with {_named(driver)}"
    if driver.error and torch.cuda is not None:
        return (
            f"{has}, which does not start: cuInit answers {driver.error}. nvidia-smi says why; after an update of the driver a "
            f"restart of the machine is due; {_ON_PURPOSE}."
        )
    if torch.cuda is None:
        return f"{has}, and torch {torch.version} is a build without CUDA. Run: {_install(driver, torch)}; {_ON_PURPOSE}."
    wanted = int(torch.cuda.partition(".")[0])
    if not driver.cuda or driver.cuda // 1000 >= wanted:
        return None
    newer = f"Install NVIDIA's driver {_DRIVERS.get(wanted, f'for CUDA {wanted}')} or newer"
    other = f", or run: {_install(driver, torch)}" if driver.cuda >= 12000 else ""
    return f"{has}, and torch {torch.version} wants CUDA {torch.cuda}. {newer}{other}; {_ON_PURPOSE}."


def _install(driver: Driver, torch: Torch) -> str:
    """The command that installs a torch for this driver.

    PyPI's builds are for CUDA 13. PyTorch's own index has builds for other versions, up to torch 2.13.
    """
    if 0 < driver.cuda < 13000:
        wanted = "'torch>=2.11,<2.14' --index-url https://download.pytorch.org/whl/cu126"
    else:
        wanted = f"torch=={torch.version.partition('+')[0]}"
    return f"{sys.executable} -m pip install --force-reinstall {wanted}"


def _named(driver: Driver) -> str:
    cuda = f"CUDA up to {driver.cuda // 1000}.{driver.cuda % 1000 // 10}" if driver.cuda else "an unknown CUDA"
    return f"NVIDIA's driver{' ' * bool(driver.release)}{driver.release} ({cuda})"
