"""Every kernel at LLaMA-2 7B's shapes, compared with the formula in PyTorch, PyTorch's own function, torch.compile,
Liger.

    python benchmarks/kernels.py [--only NAME ...] [--no-compile] [--json FILE]

A time is the median of replays of a CUDA graph with a cold L2 cache: the GPU's time, without launches. The time of a
backward is that of forward and backward together, minus the forward's. Products are also timed "kept up": many in a
row, as training runs them. Shares are those of a copy's bandwidth and of a large product's rate, which are measured
first.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from megatron_patch.kernels import adamw, cross_entropy, rms_norm, rope, softmax, swiglu  # noqa: E402
from megatron_patch.kernels.attention import attention, is_installed  # noqa: E402
from matrix_products import bench_products, bench_weight_grad  # noqa: E402
from timing import (  # noqa: E402
    DEVICE,
    DTYPE,
    EPS,
    FFN,
    D,
    H,
    N,
    S,
    Table,
    V,
    compare,
    draw,
    measure_limits,
    milliseconds,
    with_compiled,
)


def bench_rms_norm(table: Table, compiling: bool) -> None:
    """RMSNorm, whose input is also the residual."""
    weight = draw(H)
    row_bytes = 2 * S * H

    def formula(x, weight):
        x_fp32 = x.float()
        y = (x_fp32 * torch.rsqrt(x_fp32.square().mean(-1, keepdim=True) + EPS) * weight.float()).to(x.dtype)
        return y, x.view_as(x)

    versions = {
        "F.rms_norm": lambda x, w: (F.rms_norm(x, (H,), w, EPS), x.view_as(x)),
        "ours": lambda x, w: rms_norm.rms_norm_residual(x, w, EPS),
    }
    if importlib.util.find_spec("liger_kernel"):
        from liger_kernel.ops.rms_norm import LigerRMSNormFunction

        versions["Liger"] = lambda x, w: (LigerRMSNormFunction.apply(x, w, EPS), x.view_as(x))
    grads = (draw(S, 1, H, requires_grad=False), draw(S, 1, H, requires_grad=False))
    versions = with_compiled(versions, formula, compiling)
    compare(table, "rms_norm_residual", versions, (draw(S, 1, H), weight), grads, (2 * row_bytes, 4 * row_bytes))
    added = {
        "F.rms_norm": lambda x, r, w: (F.rms_norm(x + r, (H,), w, EPS), x + r),
        "ours": lambda x, r, w: rms_norm.add_rms_norm(x, r, w, EPS),
    }
    inputs = (draw(S, 1, H), draw(S, 1, H), weight)
    compare(table, "add_rms_norm", added, inputs, grads, (4 * row_bytes, 4 * row_bytes))


def bench_rope(table: Table, compiling: bool) -> None:
    """The split of QKV and the rotation of q and k."""
    cos, sin = rope.rope_tables(S, D, device=DEVICE)

    def formula(qkv):
        q, k, v = qkv.view(S, 1, N, 3, D).unbind(3)
        return rope.rope_reference(q, cos, sin), rope.rope_reference(k, cos, sin), v.contiguous()

    versions = {"ours": lambda qkv: rope.rope_qkv(qkv, cos, sin, N, N)}
    grads = tuple(draw(S, 1, N, D, requires_grad=False) for _ in range(3))
    part = 2 * S * H
    versions = with_compiled(versions, formula, compiling)
    compare(table, "rope_qkv", versions, (draw(S, 1, 3 * H),), grads, (4 * part, 6 * part))
    grads = tuple(draw(S, 1, heads, D, requires_grad=False) for heads in (N, 8, 8))
    grouped = {"ours, 8 groups": lambda qkv: rope.rope_qkv(qkv, cos, sin, N, 8)}
    compare(table, "rope_qkv", grouped, (draw(S, 1, (N + 16) * D),), grads, (3 * part, 3 * part))


def bench_swiglu(table: Table, compiling: bool) -> None:
    """SwiGLU on packed gate and up."""

    def formula(packed):
        gate, up = packed.chunk(2, -1)
        return F.silu(gate) * up

    part = 2 * S * FFN
    versions = with_compiled({"ours": swiglu.swiglu}, formula, compiling)
    if importlib.util.find_spec("liger_kernel"):
        from liger_kernel.ops.swiglu import LigerSiLUMulFunction

        versions["Liger"] = lambda packed: LigerSiLUMulFunction.apply(*(t.contiguous() for t in packed.chunk(2, -1)))
    compare(
        table,
        "swiglu",
        versions,
        (draw(S, 1, 2 * FFN),),
        (draw(S, 1, FFN, requires_grad=False),),
        (3 * part, 5 * part),
    )


def bench_softmax(table: Table, compiling: bool) -> None:
    """The causal softmax of unfused attention."""
    mask = ~softmax.causal_mask(S, S, torch.device(DEVICE))

    def formula(scores):
        return (scores * 0.1).masked_fill(mask, -torch.inf).softmax(-1)

    whole = 2 * N * S * S
    versions = with_compiled({"ours": lambda scores: softmax.causal_softmax(scores, 0.1)}, formula, compiling)
    grads = (draw(N, S, S, requires_grad=False),)
    compare(table, "causal_softmax", versions, (draw(N, S, S),), grads, (1.5 * whole, 2 * whole))


def bench_cross_entropy(table: Table, compiling: bool) -> None:
    """The loss over the whole vocabulary."""
    labels = torch.randint(0, V, (S,), device=DEVICE)

    def formula(logits):
        logits = logits.float()
        return logits.logsumexp(-1) - logits.gather(-1, labels[:, None])[:, 0]

    whole = 2 * S * V
    versions = {
        "F.cross_entropy": lambda logits: F.cross_entropy(logits.float(), labels, reduction="none"),
        "ours": lambda logits: cross_entropy.vocab_parallel_cross_entropy(logits, labels),
    }
    versions = with_compiled(versions, formula, compiling)
    grads = (torch.rand(S, device=DEVICE),)
    compare(table, "cross_entropy", versions, (draw(S, V),), grads, (whole, 2 * whole))


def bench_adamw(table: Table, compiling: bool) -> None:
    """AdamW with fp32 weights and with a remainder, each with the bf16 copy."""
    count = 1 << 28
    master, exp_avg, exp_avg_sq = (torch.rand(count, device=DEVICE) for _ in range(3))
    grad, copy = torch.randn(count, device=DEVICE), torch.empty(count, device=DEVICE, dtype=DTYPE)
    scale, found = torch.tensor(0.5, device=DEVICE), torch.zeros((), device=DEVICE)
    options = dict(lr=1e-4, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1, step=10, grad_scale=scale, found_inf=found)
    ours = milliseconds(lambda: adamw.adamw_step_(master, exp_avg, exp_avg_sq, grad, copy, **options), 200)
    table.add("adamw", "ours, with copy and scale", "step", ours, 30 * count, "GB/s")
    if copy.dtype == torch.bfloat16:
        half = torch.empty(count, device=DEVICE, dtype=torch.int16)
        adamw.split_float32(master, copy, half)
        ours = milliseconds(lambda: adamw.adamw_step_(half, exp_avg, exp_avg_sq, grad, copy, **options), 200)
        table.add("adamw", "ours, copy and remainder", "step", ours, 28 * count, "GB/s")
    parameter = master.detach().requires_grad_()
    parameter.grad = grad
    optimizer = torch.optim.AdamW([parameter], lr=1e-4, weight_decay=0.1, fused=True, capturable=True)
    table.add("adamw", "torch fused, nothing else", "step", milliseconds(optimizer.step, 200), 28 * count, "GB/s")

    def with_copy():
        grad.mul_(scale)
        optimizer.step()
        copy.copy_(parameter.detach())

    table.add("adamw", "torch fused, copy and scale", "step", milliseconds(with_copy, 200), 30 * count, "GB/s")
    pieces = [g.view(-1, 4096) for g in grad.split(1 << 24)]
    for version, implementation in (("ours", "triton"), ("torch._foreach_norm", "torch")):
        for tensors in ([grad], pieces):
            norm = functools.partial(adamw.grad_norm_squared, tensors, scale, implementation=implementation)
            table.add(
                "grad_norm",
                f"{version}, {len(tensors)} tensors",
                "norm",
                milliseconds(norm),
                4 * count,
                "GB/s",
            )


def bench_attention(table: Table, compiling: bool) -> None:
    """Attention by every backend that this machine has."""
    cos, sin = rope.rope_tables(S, D, device=DEVICE)
    q, k, v = (t.detach().requires_grad_() for t in rope.rope_qkv(draw(S, 1, 3 * H, requires_grad=False), cos, sin, N, N))
    segments = (torch.arange(S, device=DEVICE) // 512)[None]
    operations = 2 * N * S * S * D  # two products over the causal half
    versions = {}
    flash_attn_4 = ("flash_attn_4",) if is_installed("flash-attn-4") else ()
    for backend in (*flash_attn_4, "cudnn", "flash", "efficient", "unfused"):
        versions[backend] = lambda q, k, v, b=backend: attention(q, k, v, scale=D**-0.5, backend=b)
    for backend in ("varlen", "efficient"):
        versions[f"4 packed, {backend}"] = lambda q, k, v, b=backend: attention(
            q, k, v, scale=D**-0.5, backend=b, segment_ids=segments
        )
    work = (operations, 2.5 * operations)
    compare(table, "attention", versions, (q, k, v), (draw(S, 1, H, requires_grad=False),), work, "TFLOP/s")


BENCHES = {
    "rms_norm": bench_rms_norm,
    "rope": bench_rope,
    "swiglu": bench_swiglu,
    "softmax": bench_softmax,
    "cross_entropy": bench_cross_entropy,
    "adamw": bench_adamw,
    "attention": bench_attention,
    "weight_grad": bench_weight_grad,
    "products": bench_products,
}


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=BENCHES, default=list(BENCHES))
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out; it takes most of the time")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    options = parser.parse_args()
    table = Table(*measure_limits())
    for name in options.only:
        start = time.perf_counter()
        BENCHES[name](table, not options.no_compile)
        print(f"# {name}: {time.perf_counter() - start:.1f} s")
        if options.json:
            options.json.write_text(json.dumps([asdict(row) for row in table.rows], indent=1))
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
