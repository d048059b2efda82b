"""Weights in 4 bits at LLaMA-2 7B's shapes, one GPU: how fast they are written out, and what that costs a product.

    python benchmarks/nf4.py [--tokens 4096]

For each of a layer's four weights: whether the kernel gives PyTorch's bits; the kernel's microseconds, and the share of
a copy's bandwidth for what it reads and writes, for several sizes of a program; the milliseconds of quantizing. Then
the frozen product forward and backward, over 16 bits and over 4, kept up at the GPU's power limit.
"""

from __future__ import annotations

import argparse
import functools
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from timing import WEIGHTS, Table, draw, kept_up, measure_limits, milliseconds  # noqa: E402
from megatron_patch.kernels import nf4  # noqa: E402
from megatron_patch.kernels.products import matmul  # noqa: E402

_HEIGHTS = {"qkv": (128, 128, 128), "fc1": (11008, 11008)}
LAYER = {name: shape for name, shape in WEIGHTS.items() if name != "output"}


def check(name: str, weight: torch.Tensor, packed: nf4.Packed) -> None:
    """Say whether the kernel gives the reference's bits, in each dtype."""
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        got = nf4.dequantize(packed, torch.empty_like(weight, dtype=dtype))
        same = torch.equal(got, nf4.dequantize_reference(packed).to(dtype))
        print(f"{name}: {dtype} {'the same bits' if same else 'OTHER BITS'} as PyTorch", flush=True)


def write_out(table: Table, name: str, weight: torch.Tensor, packed: nf4.Packed) -> None:
    """Add rows for writing one weight out."""
    room = torch.empty_like(weight)
    for size in (16, 32, 64, 128, 256):
        nf4._PROGRAM = size
        taken = milliseconds(functools.partial(nf4.dequantize, packed, room))
        table.add(name, f"{size} blocks a program", "", taken, packed.nbytes + room.nbytes, "GB/s")
    nf4._PROGRAM = 64


def quantizing(name: str, weight: torch.Tensor) -> None:
    """Print how long quantizing one weight takes."""
    nf4.quantize(weight, _HEIGHTS.get(name, ()))
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    nf4.quantize(weight, _HEIGHTS.get(name, ()))
    end.record()
    end.synchronize()
    print(f"{name}: quantized in {start.elapsed_time(end):.1f} ms", flush=True)


def products(name: str, weight: torch.Tensor, packed: nf4.Packed, tokens: int) -> dict[str, float]:
    """Milliseconds of a frozen layer's two products, over each form of the weight."""
    fixed = functools.partial(draw, requires_grad=False)
    x, y = fixed(tokens, weight.size(1)), fixed(tokens, weight.size(0))
    dx, room = torch.empty_like(x), torch.empty_like(weight)

    def dense() -> None:
        matmul(x, weight.t(), y)
        matmul(y, weight, dx)

    def four_bits() -> None:
        matmul(x, nf4.dequantize(packed, room).t(), y)
        matmul(y, nf4.dequantize(packed, room), dx)

    return {"16 bits": kept_up(dense), "4 bits": kept_up(four_bits)}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=4096, help="of a pass: two micro-batches of 2048")
    options = parser.parse_args()
    table = Table(*measure_limits())
    totals: dict[str, float] = {}
    for name, shape in LAYER.items():
        weight = (draw(*shape, requires_grad=False) * 0.02).contiguous()
        packed = nf4.quantize(weight, _HEIGHTS.get(name, ()))
        check(name, weight, packed)
        quantizing(name, weight)
        write_out(table, name, weight, packed)
        for form, taken in products(name, weight, packed, options.tokens).items():
            totals[form] = totals.get(form, 0.0) + taken
            print(f"{name}: forward and backward over {form}: {taken * 1e3:.0f} µs", flush=True)
    print("; ".join(f"a layer over {form}: {taken:.3f} ms" for form, taken in totals.items()))


if __name__ == "__main__":
    main()
