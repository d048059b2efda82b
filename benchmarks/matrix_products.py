"""The matrix products of a layer: by cuBLAS's guess, by the measured algorithm, and by the Triton product that was
tried.

The products of training are also timed "kept up", at the GPU's power limit: their algorithm is chosen there. On a GPU
that rests between calls cuBLAS's guess is often ahead.
"""

from __future__ import annotations

import torch

from megatron_patch.kernels.grad_accumulation import accumulate_weight_grad
from megatron_patch.kernels.products import matmul
from timing import DEVICE, WEIGHTS, S, Table, draw, kept_up, milliseconds
from wgrad_gemm import GemmConfig, weight_grad_gemm

GEMMS = {
    "Triton 128x128": GemmConfig(),
    "Triton 128x128, atomics": GemmConfig(epilogue="atomic"),
    "Triton 128x128, load and add": GemmConfig(epilogue="add"),
    "Triton 128x128, persistent": GemmConfig(block_tokens=32, stages=4, programs=2),
    "Triton 128x256, persistent": GemmConfig(block_in=256, warps=8, programs=1),
}


def bench_weight_grad(table: Table, compiling: bool) -> None:
    """Weight gradients added to float32."""
    for name, (out, inner) in WEIGHTS.items():
        weight_grad = torch.zeros(out, inner, device=DEVICE)
        x, dy, x2, dy2 = (draw(S, size, requires_grad=False) for size in (inner, out, inner, out))
        operations, kernel = 2 * S * out * inner, f"wgrad {name}"

        def add(version, function, work, kernel=kernel):
            table.add(kernel, version, "adds", milliseconds(function), work, "TFLOP/s")

        add("product in bf16", lambda dy=dy, x=x: dy.t() @ x, operations)
        both = {
            "torch.addmm": lambda w=weight_grad, x=x, dy=dy: addmm(w, dy, x),
            "measured algorithm": lambda w=weight_grad, x=x, dy=dy: accumulate_weight_grad(w, x, dy),
        }
        for version, function in both.items():
            add(version, function, operations)
            table.add(kernel, f"{version}, kept up", "adds", kept_up(function), operations, "TFLOP/s")
        add(
            "measured, overwrites",
            lambda w=weight_grad, x=x, dy=dy: accumulate_weight_grad(w, x, dy, overwrite=True),
            operations,
        )
        long = (torch.cat([x, x2]), torch.cat([dy, dy2]))
        add(
            "measured, twice the tokens",
            lambda w=weight_grad, p=long: accumulate_weight_grad(w, *p),
            2 * operations,
        )
        check_weight_grad(weight_grad, x, dy)
        for version, config in GEMMS.items():
            add(
                version,
                lambda w=weight_grad, p=[(x, dy)], c=config: weight_grad_gemm(w, p, config=c),
                operations,
            )
        two = [(x, dy), (x2, dy2)]
        add("Triton, two micro-batches", lambda w=weight_grad, p=two: weight_grad_gemm(w, p), 2 * operations)
        add(
            "Triton, overwrites",
            lambda w=weight_grad, p=two[:1]: weight_grad_gemm(w, p, overwrite=True),
            operations,
        )


def addmm(weight_grad, dy, x) -> None:
    """The same product with the algorithm that cuBLAS guesses."""
    torch.addmm(weight_grad, dy.t(), x, out_dtype=torch.float32, out=weight_grad)


def bench_products(table: Table, compiling: bool) -> None:
    """The products of the forward pass and of the input's gradient."""
    for name, (out, inner) in WEIGHTS.items():
        x, dy = (draw(S, size, requires_grad=False) for size in (inner, out))
        weight, operations = draw(out, inner, requires_grad=False), 2 * S * out * inner
        parts = {
            "forward": (x, weight.t(), torch.empty_like(dy)),
            "backward": (dy, weight, torch.empty_like(x)),
        }
        for part, (a, b, target) in parts.items():
            both = {
                "torch.mm": lambda a=a, b=b, t=target: torch.mm(a, b, out=t),
                "measured algorithm": lambda a=a, b=b, t=target: matmul(a, b, t),
            }
            for version, function in both.items():
                table.add(f"product {name}", version, part, milliseconds(function), operations, "TFLOP/s")
                table.add(f"product {name}", f"{version}, kept up", part, kept_up(function), operations, "TFLOP/s")


def check_weight_grad(weight_grad, x, dy) -> None:
    """Compare the Triton product with torch's before it is timed. No test does, because training does not use it."""
    accumulate_weight_grad(weight_grad, x, dy, overwrite=True)
    for config in GEMMS.values():
        tried = torch.zeros_like(weight_grad)
        weight_grad_gemm(tried, [(x, dy)], config=config)
        torch.testing.assert_close(tried, weight_grad, rtol=1e-4, atol=1e-2)
