"""What the kernels' benchmark measures with: LLaMA-2 7B's shapes, GPU times, a table."""

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
    kernel: str
    version: str
    part: str
    microseconds: float
    rate: float  # GB/s or TFLOP/s
    unit: str
    share: float


class Table:
    def __init__(self, copy_rate: float, product_rate: float) -> None:
        self.rows: list[Row] = []
        self._limits = {"GB/s": copy_rate, "TFLOP/s": product_rate}
        print(f"copy {copy_rate:.0f} GB/s, bf16 product {product_rate:.0f} TFLOP/s on {torch.cuda.get_device_name()}")
        print(f"{'kernel':<18}{'version':<30}{'part':<10}{'µs':>10}{'rate':>9} {'unit':<8}{'share':>6}")

    def add(self, kernel: str, version: str, part: str, milliseconds: float, work: float, unit: str) -> None:
        rate = work / milliseconds / (1e6 if unit == "GB/s" else 1e9)
        row = Row(kernel, version, part, milliseconds * 1e3, rate, unit, rate / self._limits[unit])
        self.rows.append(row)
        print(f"{kernel:<18}{version:<30}{part:<10}{row.microseconds:>10.1f}{rate:>9.0f} {unit:<8}{row.share:>6.0%}")
        sys.stdout.flush()


def milliseconds(function: Callable[[], object], repeat: int = 60) -> float:
    """Median time of a CUDA graph of one call."""
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
    """Milliseconds of a call in the midst of many, with warm caches: large products bring a GPU to its power limit, and after
    `settle` ms of one product the clock is what that product's energy allows. `milliseconds` sees a GPU that rests in between."""
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
    return torch.randn(*shape, dtype=dtype, device=DEVICE).requires_grad_(requires_grad)


def compare(table: Table, name: str, versions: dict[str, Callable], inputs, grads, work, unit="GB/s") -> None:
    """Times forward(*inputs) → outputs and its backward from grads; work: (forward, backward) in bytes or
    operations."""
    for version, forward in versions.items():

        def step(forward=forward):
            outputs = forward(*inputs)
            outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            return torch.autograd.grad(outputs, [t for t in inputs if t.requires_grad], grads)

        once, both = milliseconds(lambda forward=forward: forward(*inputs)), milliseconds(step)
        table.add(name, version, "forward", once, work[0], unit)
        table.add(name, version, "backward", both - once, work[1], unit)


def with_compiled(versions: dict[str, Callable], reference: Callable, compiling: bool) -> dict[str, Callable]:
    named = {"formula": reference, **versions}
    return {**named, "torch.compile": torch.compile(reference)} if compiling else named


def measure_limits() -> tuple[float, float]:
    """GB/s of a copy, read and written, and TFLOP/s of a bf16 product of 8192³."""
    source = torch.randn(1 << 30, device=DEVICE)
    target = torch.empty_like(source)
    copied = 2 * source.nbytes / milliseconds(lambda: torch.neg(source, out=target)) / 1e6
    a, b = draw(8192, 8192, requires_grad=False), draw(8192, 8192, requires_grad=False)
    return copied, 2 * 8192**3 / milliseconds(lambda: a @ b, 200) / 1e9
