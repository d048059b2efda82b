"""What each of cuBLASLt's algorithms costs in the matrix products of a LLaMA-2 7B layer.

    python benchmarks/product_algorithms.py --tokens 2048 4096 --dtype bf16 fp16

Each is measured briefly, and kept up at the power limit. Training chooses by the same measurements
(megatron_patch/kernels/_race.py), but keeps up its finalists only. `*` marks the first of cuBLASLt's list, which is
what torch.mm takes if it is among the candidates.
"""

from __future__ import annotations

import argparse
import functools
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from megatron_patch.kernels import _race, products
from megatron_patch.kernels._cublaslt import Product
from timing import DEVICE, WEIGHTS

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def operands(tokens: int, out: int, inner: int, dtype: torch.dtype) -> dict[str, tuple[torch.Tensor, ...]]:
    """(a, b, result) of each of a layer's three products, as model/linear.py passes them."""
    x, dy, weight = (torch.randn(*shape, device=DEVICE).to(dtype) for shape in ((tokens, inner), (tokens, out), (out, inner)))
    return {
        "forward": (x, weight.t(), torch.empty_like(dy)),
        "data gradient": (dy, weight, torch.empty_like(x)),
        "weight gradient": (dy.t(), x, torch.zeros(out, inner, device=DEVICE)),
    }


def costs(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor) -> list[tuple[float, float]]:
    """(milliseconds measured briefly, milliseconds kept up) of each candidate for out = a · b."""
    product = Product(products.shape_of(a, b, out), out.device)
    beta = 1.0 if out.dtype == torch.float32 else 0.0
    run = functools.partial(products._time, product, products._addresses(a, b, out), beta, products._stream(out))
    _race._heat(run, product.algorithms[0])
    short = _race.race(run, product.algorithms)
    return [(brief, _race._for_long(run, algorithm, brief)) for brief, algorithm in zip(short, product.algorithms)]


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", nargs="+", type=int, default=[2048])
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=["bf16"])
    options = parser.parse_args()
    print(f"{torch.cuda.get_device_name()}; microseconds briefly / kept up")
    for tokens in options.tokens:
        for dtype in options.dtype:
            for name, (out, inner) in WEIGHTS.items():
                for form, tensors in operands(tokens, out, inner, DTYPES[dtype]).items():
                    cells = [f"{brief * 1e3:.0f} / {long * 1e3:.0f}" for brief, long in costs(*tensors)]
                    print(f"{dtype} {tokens:5} {name:7}{form:16}", "*" + "   ".join(cells), flush=True)


if __name__ == "__main__":
    main()
