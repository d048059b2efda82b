"""The small products of LoRA at LLaMA-2 7B's shapes: this project's kernels and torch's products, one GPU.

    python benchmarks/lora.py [--tokens 4096] [--rank 16]

First each of the six products of a layer's adapters alone: microseconds, and the share of a copy's bandwidth for the
bytes of its wide matrix. Then, for each layer, the frozen product forward and backward without adapters and with them,
as they are in training, kept up at the GPU's power limit. `written first` is another way: the adapter's output is
written, and the frozen product adds to it.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from timing import FFN, H, D, N, Table, draw, kept_up, measure_limits, milliseconds  # noqa: E402
from megatron_patch.kernels.lora import (  # noqa: E402
    Blocks,
    add_a_gradient,
    add_b_gradient,
    add_input_gradient_,
    expand_,
    shrink,
    shrink_gradient,
)
from megatron_patch.kernels.products import matmul  # noqa: E402

# layer → (heights of a period, periods, width of its input)
LAYERS = {"qkv": ((D, D, D), N, H), "proj": ((H,), 1, H), "fc1": ((FFN, FFN), 1, H), "fc2": ((H,), 1, FFN)}
SCALE = 2.0


def products(name: str, tokens: int, rank: int) -> dict[str, tuple[Callable[[str], object], int]]:
    """Product → (function of the implementation, bytes of its wide matrix that it reads and writes)."""
    heights, periods, width = LAYERS[name]
    blocks = Blocks(heights, tuple(range(len(heights))), rank)
    fixed = functools.partial(draw, requires_grad=False)
    x, dy = fixed(tokens, width), fixed(tokens, periods * blocks.period)
    low, a, b = fixed(tokens, blocks.count * rank), fixed(blocks.count * rank, width), fixed(periods * blocks.rows, rank)
    grads = torch.zeros_like(a, dtype=torch.float32), torch.zeros_like(b, dtype=torch.float32)
    return {
        "x A'": (lambda kind: shrink(x, a, SCALE, kind), x.nbytes),
        "+= low B'": (lambda kind: expand_(dy, low, b, blocks, kind), 2 * dy.nbytes),
        "dy B": (lambda kind: shrink_gradient(dy, b, blocks, SCALE, kind), dy.nbytes),
        "+= dlow A": (lambda kind: add_input_gradient_(x, low, a, kind), 2 * x.nbytes),
        "dA": (lambda kind: add_a_gradient(grads[0], x, low, implementation=kind), x.nbytes),
        "dB": (lambda kind: add_b_gradient(grads[1], dy, low, blocks, implementation=kind), dy.nbytes),
    }


def layer(name: str, tokens: int, rank: int) -> dict[str, Callable[[], object]]:
    """Version → one layer forward and backward: the frozen products alone, and with adapters."""
    heights, periods, width = LAYERS[name]
    blocks = Blocks(heights, tuple(range(len(heights))), rank)
    fixed = functools.partial(draw, requires_grad=False)
    out = periods * blocks.period
    x, dy, w, y, dx = fixed(tokens, width), fixed(tokens, out), fixed(out, width), fixed(tokens, out), fixed(tokens, width)
    a, b = fixed(blocks.count * rank, width), fixed(periods * blocks.rows, rank)
    grads = torch.zeros_like(a, dtype=torch.float32), torch.zeros_like(b, dtype=torch.float32)

    def alone() -> None:
        matmul(x, w.t(), y)
        matmul(dy, w, dx)

    def adapted(kind: str) -> None:
        matmul(x, w.t(), y)
        low = shrink(x, a, SCALE, kind)
        expand_(y, low, b, blocks, kind)
        dlow = shrink_gradient(dy, b, blocks, SCALE, kind)
        matmul(dy, w, dx)
        add_input_gradient_(dx, dlow, a, kind)
        add_a_gradient(grads[0], x, dlow, implementation=kind)
        add_b_gradient(grads[1], dy, low, blocks, implementation=kind)

    def written_first() -> None:
        low = shrink(x, a, SCALE, "triton")
        matmul(low, blocks.spread(b).t(), y)
        matmul(x, w.t(), y, add=True)
        dlow = shrink_gradient(dy, b, blocks, SCALE, "triton")
        matmul(dlow, a, dx)
        matmul(dy, w, dx, add=True)
        add_a_gradient(grads[0], x, dlow, implementation="triton")
        add_b_gradient(grads[1], dy, low, blocks, implementation="triton")

    kinds = {f"with adapters, {kind}": functools.partial(adapted, kind) for kind in ("triton", "torch")}
    return {"frozen alone": alone, **kinds, "written first": written_first}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=4096, help="of a pass: two micro-batches of 2048")
    parser.add_argument("--rank", type=int, default=16)
    options = parser.parse_args()
    copied, product = measure_limits()
    table = Table(copied, product)
    for name in LAYERS:
        for part, (run, size) in products(name, options.tokens, options.rank).items():
            for kind in ("triton", "torch"):
                table.add(f"{name} {part}", kind, "", milliseconds(functools.partial(run, kind)), size, "GB/s")
    totals: dict[str, float] = {}
    print(f"{'layer':<8}{'version':<28}{'µs':>10}")
    for name in LAYERS:
        for version, run in layer(name, options.tokens, options.rank).items():
            taken = kept_up(run) * 1e3
            totals[version] = totals.get(version, 0.0) + taken
            print(f"{name:<8}{version:<28}{taken:>10.1f}", flush=True)
    for version, taken in totals.items():
        print(f"{'all':<8}{version:<28}{taken:>10.1f}")


if __name__ == "__main__":
    main()
