"""What the benchmarks of kernels and products share: LLaMA-2 7B's shapes, GPU times, a table."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch

S, H, FFN, N, D, V = 2048, 4096, 11008, 32, 128, 32000
DTYPE, EPS, DEVICE = torch.bfloat16, 1e-5, "cuda"
WEIGHTS = {"qkv": (3 * H, H), "proj": (H, H), "fc1": (2 * FFN, H), "fc2": (H, FFN), "output": (V, H)}


@dataclass(frozen=True)
class Row:
    """One measured time, and its rate as a share of what this GPU reaches at most."""

    kernel: str
    version: str
    part: str
    microseconds: float
    rate: float  # GB/s or TFLOP/s
    unit: str
    share: float


class Table:
    """Prints each row as it is added, and keeps it.

    Args:
        copy_rate: GB/s of a copy, the limit of kernels that move memory.
        product_rate: TFLOP/s of a large product, the limit of products.
    """

    def __init__(self, copy_rate: float, product_rate: float) -> None:
        self.rows: list[Row] = []
        self._limits = {"GB/s": copy_rate, "TFLOP/s": product_rate}
        print(f"copy {copy_rate:.0f} GB/s, bf16 product {product_rate:.0f} TFLOP/s on {torch.cuda.get_device_name()}")
        print(f"{'kernel':<18}{'version':<30}{'part':<10}{'µs':>10}{'rate':>9} {'unit':<8}{'share':>6}")

    def add(self, kernel: str, version: str, part: str, milliseconds: float, work: float, unit: str) -> None:
        """Add a row; `work` is bytes for the unit GB/s, operations for TFLOP/s."""
        rate = work / milliseconds / (1e6 if unit == "GB/s" else 1e9)
        row = Row(kernel, version, part, milliseconds * 1e3, rate, unit, rate / self._limits[unit])
        self.rows.append(row)
        print(f"{kernel:<18}{version:<30}{part:<10}{row.microseconds:>10.1f}{rate:>9.0f} {unit:<8}{row.share:>6.0%}")
        sys.stdout.flush()


def milliseconds(function: Callable[[], object], repeat: int = 60) -> float:
    """The median milliseconds of one call, replayed as a CUDA graph."""
    from triton.testing import do_bench

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    return do_bench(graph.replay, warmup=10, rep=repeat, return_mode="median")


def kept_up(function: Callable[[], object], settle: float = 100.0, measured: float = 100.0) -> float:
    """Milliseconds of one call among many in a row, with warm caches.

    Large products bring a GPU to its power limit. After `settle` ms of one product the clock is what that product's
    energy allows; then calls are measured for `measured` ms. `milliseconds` sees a GPU that rests between calls.
    """
    once = milliseconds(function, 20)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    calls = math.ceil(measured / once)
    for _ in range(math.ceil(settle / once)):
        function()
    start.record()
    for _ in range(calls):
        function()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / calls


def draw(*shape: int, dtype: torch.dtype = DTYPE, requires_grad: bool = True) -> torch.Tensor:
    """A tensor of normal numbers on the GPU."""
    return torch.randn(*shape, dtype=dtype, device=DEVICE).requires_grad_(requires_grad)


def compare(table: Table, name: str, versions: dict[str, Callable], inputs, grads, work, unit="GB/s") -> None:
    """Time the forward and the backward of each version, and add rows.

    Args:
        versions: name → forward(*inputs), which returns outputs.
        grads: the gradients of the outputs.
        work: (of the forward, of the backward), in bytes or operations, as `unit` says.
    """
    for version, forward in versions.items():

        def step(forward=forward):
            outputs = forward(*inputs)
            outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            return torch.autograd.grad(outputs, [t for t in inputs if t.requires_grad], grads)

        once, both = milliseconds(lambda forward=forward: forward(*inputs)), milliseconds(step)
        table.add(name, version, "forward", once, work[0], unit)
        table.add(name, version, "backward", both - once, work[1], unit)


def with_compiled(versions: dict[str, Callable], reference: Callable, compiling: bool) -> dict[str, Callable]:
    """`versions` and the formula `reference`, the latter also through torch.compile if `compiling`."""
    named = {"formula": reference, **versions}
    return {**named, "torch.compile": torch.compile(reference)} if compiling else named


def measure_limits() -> tuple[float, float]:
    """(GB/s of a copy, bytes read and written both counted, TFLOP/s of a bf16 product of 8192³)."""
    source = torch.randn(1 << 30, device=DEVICE)
    target = torch.empty_like(source)
    copied = 2 * source.nbytes / milliseconds(lambda: torch.neg(source, out=target)) / 1e6
    a, b = draw(8192, 8192, requires_grad=False), draw(8192, 8192, requires_grad=False)
    return copied, 2 * 8192**3 / milliseconds(lambda: a @ b, 200) / 1e9
