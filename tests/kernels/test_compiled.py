"""Every kernel is compiled for an H100 or H200 at LLaMA-2 7B's widths, which takes no GPU.

The other tests run kernels in Triton's interpreter, which accepts more than its compiler does. The interpreter also
changes Triton's language and does not change it back, so kernels are compiled in a process of their own.
"""

from __future__ import annotations

import importlib
import inspect
import os
import pkgutil
import subprocess
import sys

import pytest
import torch

from megatron_patch import kernels
from megatron_patch.kernels import _dispatch
from megatron_patch.kernels.adamw import adamw_step_, grad_norm_squared
from megatron_patch.kernels.cache_write import write_blocks
from megatron_patch.kernels.cross_entropy import vocab_parallel_cross_entropy
from megatron_patch.kernels.decode_attention import Reading, decode_attention
from megatron_patch.kernels.dropout import Draws, kept
from megatron_patch.kernels.embedding import embedding
from megatron_patch.kernels.fp8 import CELLS, E4M3, E5M2, cast, cast_part, complete, note_largest_numbers, room
from megatron_patch.kernels.lora import Blocks, add_b_gradient, expand_, shrink, shrink_gradient
from megatron_patch.kernels.nf4 import dequantize, quantize
from megatron_patch.kernels.rms_norm import add_rms_norm, rms_norm, rms_norm_residual
from megatron_patch.kernels.rope import rope_qkv, rope_tables
from megatron_patch.kernels.softmax import causal_softmax
from megatron_patch.kernels.sums import sum_parts
from megatron_patch.kernels.swiglu import swiglu
from megatron_patch.kernels.thin_products import FEW_ROWS, FEW_ROWS_SPLIT, ONE_ROW, product, product_add_norm, row_product
from tests.launching import ROOT

S, H, FFN, N, D, V = 40, 4096, 11008, 32, 128, 32000
_TYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
_TYPES |= {torch.float8_e4m3fn: "fp8e4nv", torch.float8_e5m2: "fp8e5"}
_TYPES |= {torch.int64: "i64", torch.int32: "i32", torch.int16: "i16", torch.uint8: "u8"}


def compile_instead(kernel: _dispatch.Kernel, compiled: list[str], *arguments: object, **named: object) -> None:
    """What a launch with these arguments would compile, specialized as Triton does: multiples of 16, ones, None."""
    import triton

    function = triton.jit(kernel._function)
    named |= {"WIDEN": False} if "WIDEN" in named else {}  # as on a GPU
    options = {name: named.pop(name) for name in ("num_warps", "num_stages", "enable_fp_fusion") if name in named}
    signature, constants, attributes = {}, {}, {}
    values = inspect.signature(kernel._function).bind(*arguments, **named).arguments
    for place, (parameter, value) in enumerate(zip(function.params, values.values(), strict=True)):
        if parameter.is_constexpr or value is None or (isinstance(value, int) and value == 1):
            signature[parameter.name], constants[(place,)] = "constexpr", value
            continue
        number = value.data_ptr() if isinstance(value, torch.Tensor) else value
        if isinstance(value, torch.Tensor):
            signature[parameter.name] = "*" + _TYPES[value.dtype]
        else:
            signature[parameter.name] = "fp32" if isinstance(value, float) else "i32"
        if isinstance(number, int) and number % 16 == 0:
            attributes[(place,)] = [["tt.divisibility", 16]]
    source = triton.compiler.ASTSource(function, signature, constants, attributes)
    target = triton.backends.compiler.GPUTarget("cuda", 90, 32)
    triton.compile(source, target=target, options=options)
    compiled.append(kernel._function.__name__)


def all_kernels() -> set[str]:
    """The names of all kernels that the package has."""
    modules = [importlib.import_module(f"megatron_patch.kernels.{info.name}") for info in pkgutil.iter_modules(kernels.__path__)]
    members = [member for module in modules for member in vars(module).values()]
    return {member._function.__name__ for member in members if isinstance(member, _dispatch.Kernel)}


def both_ways(function, *tensors, **options):
    """Run forward and backward. The numbers are uninitialized memory: only the compilation matters."""
    outputs = function(*tensors, **options, implementation="triton")
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    torch.autograd.backward(outputs, [torch.zeros_like(output) for output in outputs])


def compile_all(dtype: torch.dtype) -> None:
    """Compile every kernel of the package; raises the compiler's error."""
    compiled: list[str] = []
    _dispatch.Kernel._launch = lambda kernel, grid, *args, **named: compile_instead(kernel, compiled, *args, **named)

    def new(*shape):
        return torch.zeros(*shape, dtype=dtype, requires_grad=True)

    main_grad, tables = torch.zeros(H), rope_tables(S, D)
    weight, tokens = new(H), torch.zeros(1, S, dtype=torch.long)
    both_ways(rms_norm, new(S, 1, H), weight, 1e-5)
    both_ways(rms_norm_residual, new(S, 1, H), weight, 1e-5, weight_grad=main_grad)
    both_ways(add_rms_norm, new(S, 1, H), new(S, 1, H), weight, 1e-5, weight_grad=main_grad)
    both_ways(swiglu, new(S, 1, 2 * FFN) * 1)
    for groups in (N, 8):
        both_ways(rope_qkv, new(S, 1, (N + 2 * groups) * D) * 1, *tables, N, groups)
    note_largest_numbers(True)
    both_ways(rms_norm, new(S, 1, H), weight, 1e-5)
    both_ways(swiglu, new(S, 1, 2 * FFN) * 1)
    both_ways(rope_qkv, new(S, 1, 3 * N * D) * 1, *tables, N, N)
    note_largest_numbers(False)
    both_ways(causal_softmax, new(N, S, S) * 1, 1.0)
    both_ways(vocab_parallel_cross_entropy, new(S, 1, V) * 1, tokens.t())
    both_ways(embedding, tokens.t(), new(V, H), weight_grad=torch.zeros(V, H))
    flat = torch.zeros(4096)
    numbers = dict(lr=1e-5, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1, step=1, implementation="triton")
    adamw_step_(flat, flat, flat, flat, flat.to(dtype), grad_scale=flat[0], found_inf=flat[0], **numbers)
    if dtype == torch.bfloat16:
        adamw_step_(flat.short(), flat, flat, flat, flat.to(dtype), grad_scale=flat[0], found_inf=flat[0], **numbers)
    grad_norm_squared([flat], scale=flat[0], implementation="triton")
    sum_parts(new(S, H), new(3, S, H), new(S, H), implementation="triton")
    for kind, values in ((E4M3, True), (E5M2, True), (E4M3, False)):
        cast(new(S, H).detach(), kind, values=values, implementation="triton")
    gathered, cells = room(new(S, H), E4M3), torch.zeros(CELLS)
    cast_part(new(S * H), cells, gathered.values.view(-1), implementation="triton")
    complete(gathered, cells, implementation="triton")
    decoding(lambda *shape: torch.zeros(*shape, dtype=dtype))
    for heights, width in (((D, D, D), H), ((FFN, FFN), H), ((H,), FFN)):
        blocks = Blocks(heights, tuple(range(len(heights))), 16)
        b, narrow = new(N * blocks.rows if len(heights) == 3 else blocks.rows, 16).detach(), new(S, blocks.count * 16).detach()
        wide = new(S, len(b)).detach()
        shrink_gradient(wide, b, blocks, 2.0, "triton")
        expand_(wide, narrow, b, blocks, "triton")
        add_b_gradient(torch.zeros(b.shape), wide, narrow, blocks, implementation="triton")
        shrink(new(S, width).detach(), new(blocks.count * 16, width).detach(), 2.0, "triton")
    kept(S, H, torch.zeros(1, dtype=torch.int64), Draws(1234, 1, 0.1), implementation="triton")
    dequantize(quantize(new(64, H).detach()), new(64, H).detach(), implementation="triton")
    assert set(compiled) == all_kernels(), set(compiled) ^ all_kernels()


def decoding(new) -> None:
    """A prompt, and a step of decoding, each kernel so that it may begin while the one before it ends."""
    table = torch.zeros(1, 64, dtype=torch.int32)  # long enough for parts that are joined
    for groups, dot in ((N, False), (N, True), (8, True)):
        cache, packed = new(2, groups, 16, D), new(1, (N + 2 * groups) * D)
        reading = Reading(programs=64, dot=dot, overlap=True)
        decode_attention(
            packed, cache, cache, table, table[0, :1], *rope_tables(S, D), scale=0.1, reading=reading, implementation="triton"
        )
        write_blocks(
            new(S, groups, D), new(S, groups, D), cache, cache, torch.zeros(S, dtype=torch.int64), implementation="triton"
        )
    tilings, triton = dict(tiling=ONE_ROW._replace(overlap=True)), dict(implementation="triton")
    row_product(new(1, H), new(2 * FFN, H), norm=new(H), eps=1e-5, gated=True, **tilings, **triton)
    row_product(new(1, FFN), new(H, FFN), residual=new(1, H), **tilings, **triton)
    product(new(8, H), new(2 * FFN, H), gated=True, tiling=FEW_ROWS._replace(rows=32, overlap=True), **triton)
    tiling = FEW_ROWS_SPLIT._replace(overlap=True)
    product_add_norm(new(8, FFN), new(H, FFN), new(8, H), new(H), 1e-5, tiling=tiling, **triton)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_kernels_compile_for_hopper(dtype, tmp_path):
    pytest.importorskip("triton")
    command = [sys.executable, "-W", "ignore", "-m", "tests.kernels.test_compiled", dtype]
    # A cache of its own, or what compiled once would never be compiled again.
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]


if __name__ == "__main__":
    compile_all(getattr(torch, sys.argv[1]))
