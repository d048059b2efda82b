import numpy as np
import pytest
import torch

from megatron_patch.kernels.fp8 import (
    CELLS,
    E4M3,
    E5M2,
    LARGEST,
    cast,
    cast_part,
    complete,
    largest,
    note_largest_numbers,
    noted_largest,
    numbers,
    room,
)
from megatron_patch.kernels.products import scaled_matmul
from megatron_patch.kernels.rms_norm import add_rms_norm, rms_norm, rms_norm_residual
from megatron_patch.kernels.rope import rope_qkv, rope_tables
from megatron_patch.kernels.swiglu import swiglu

# Half a unit in the last place, relative, of normal numbers; half the smallest number above zero.
HALF_UNIT, HALF_SMALLEST = {E4M3: 2.0**-4, E5M2: 2.0**-3}, {E4M3: 2.0**-10, E5M2: 2.0**-17}
FLOAT32 = torch.finfo(torch.float32).eps


@pytest.fixture(autouse=True)
def rounding_interpreter(monkeypatch):
    """Round as GPUs and PyTorch do. Triton's interpreter loses a carry into the exponent when it rounds to FP8."""
    interpreter = pytest.importorskip("triton.runtime.interpreter")
    original, tl = interpreter._convert_float, interpreter.tl

    def convert(input, input_dtype, output_dtype, rounding_mode):
        kind = {tl.float8e4nv: E4M3, tl.float8e5: E5M2}.get(output_dtype)
        if kind is None or input_dtype != tl.float32:
            return original(input, input_dtype, output_dtype, rounding_mode)
        rounded = torch.from_numpy(np.ascontiguousarray(input).view(np.float32)).to(kind)
        return rounded.view(torch.uint8).numpy().reshape(input.shape)

    monkeypatch.setattr(interpreter, "_convert_float", convert)


@pytest.mark.parametrize("kind", [E4M3, E5M2])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", [(1, 1), (7, 300), (200, 130)])
def test_cast_is_the_nearest_number(draw, implementation, kind, dtype, shape):
    x = draw(dtype, *shape, requires_grad=False) * torch.exp(4 * draw(dtype, *shape, requires_grad=False))
    made = cast(x, kind, implementation=implementation)
    most = x.double().abs().max()
    assert torch.equal(made.turned, made.values.t()) and made.turned.is_contiguous()
    assert made.values.float().abs().max() == LARGEST[kind], "the range is used up to its end"
    torch.testing.assert_close(made.scale.double(), (most / LARGEST[kind]).view(1), rtol=FLOAT32, atol=0.0)
    off = (made.values.double() * made.scale.double() - x.double()).abs()
    bound = torch.maximum(x.double().abs() * HALF_UNIT[kind], made.scale.double() * HALF_SMALLEST[kind])
    assert (off <= bound * (1 + 4 * FLOAT32) + 4 * FLOAT32 * x.double().abs()).all()


def test_parts_and_what_is_known(draw, implementation):
    x = draw(torch.bfloat16, 40, 50, requires_grad=False)
    whole, cells = cast(x, E4M3, implementation=implementation), largest(x, implementation=implementation)
    assert cells.max() == x.abs().max()
    for values in (True, False):
        part = cast(x, E4M3, values=values, turned=not values, cells=cells, implementation=implementation)
        assert (part.values is None, part.turned is None) == (not values, values)
        assert torch.equal(numbers(part), numbers(whole))
    twice = cast(2 * x, E4M3, out=whole, implementation=implementation)
    assert twice is whole and torch.equal(numbers(whole), 2 * numbers(part)), "written again in place"


@pytest.mark.parametrize("shape, cut", [((7, 300), 1000), ((200, 130), 3), ((16, 16), 256)])
def test_ranks_cast_their_parts_of_a_matrix_as_one_casts_it(draw, implementation, shape, cut):
    """Bit for bit: each finds the largest number of its part, casts it by the larger one, and turns the whole."""
    x = draw(torch.bfloat16, *shape, requires_grad=False)
    wanted, made = cast(x, E4M3, implementation=implementation), room(x, E4M3)
    sides = [slice(0, cut), slice(cut, x.numel())] if cut < x.numel() else [slice(0, cut)]
    cells = torch.zeros(len(sides), CELLS, device=x.device)
    for side, out in zip(sides, cells):
        largest(x.view(-1)[side], out=out, implementation=implementation)
    for side in sides:
        cast_part(x.view(-1)[side], cells.amax(0), made.values.view(-1)[side], implementation=implementation)
    complete(made, cells.amax(0), implementation=implementation)
    for one, other in zip(made, wanted, strict=True):
        assert torch.equal(one.view(torch.uint8), other.view(torch.uint8))


def test_zeros_and_what_is_not_finite(implementation, device):
    zeros = cast(torch.zeros(3, 5, device=device), E4M3, implementation=implementation)
    assert zeros.scale == 1 and not zeros.values.float().any()
    for wrong in (float("inf"), float("nan")):
        x = torch.ones(16, 16, device=device)
        x[3, 4] = wrong
        made, ones = cast(x, E5M2, implementation=implementation), cast(torch.ones(16, 16, device=device), E4M3)
        out = torch.empty(16, 16, device=device)
        scaled_matmul(made.values, ones.turned.t(), out, made.scale, ones.scale)
        assert out[3].isnan().all()
    with pytest.raises(ValueError, match="contiguous"):
        cast(torch.ones(3, 4).t(), E4M3)


@pytest.mark.parametrize("kind", [E4M3, E5M2])
@pytest.mark.parametrize("add, out_dtype", [(False, torch.bfloat16), (True, torch.float32)])
@pytest.mark.parametrize("m, n, k", [(24, 40, 56), (1024, 1152, 1088)])
def test_product_against_float64(draw, agree, kind, add, out_dtype, m, n, k):
    a, b = draw(torch.bfloat16, m, k, requires_grad=False), draw(torch.bfloat16, n, k, requires_grad=False)
    before = draw(out_dtype, m, n, requires_grad=False)
    out = before.clone() if add else torch.full_like(before, torch.nan)
    qa, qb = cast(a, kind), cast(b, E4M3)
    assert scaled_matmul(qa.values, qb.values.t(), out, qa.scale, qb.scale, add=add) is out
    old = before.double() if add else 0.0
    # Hopper's tensor cores keep 14 bits of a sum of 128 products; the rest is float32.
    sums = 2.0**-13 if a.is_cuda else 0.0
    exact = numbers(qa).double() @ numbers(qb).double().t()
    assert (out.double() - old - exact).norm() <= (torch.finfo(out_dtype).eps + 32 * FLOAT32 + sums) * exact.norm()
    # Each factor is off by half a unit, or by half of the smallest number.
    size_a, size_b = a.double().abs(), b.double().abs()
    off_a = torch.maximum(size_a * HALF_UNIT[kind], qa.scale.double() * HALF_SMALLEST[kind])
    off_b = torch.maximum(size_b * HALF_UNIT[E4M3], qb.scale.double() * HALF_SMALLEST[E4M3])
    bound = off_a @ size_b.t() + size_a @ off_b.t() + off_a @ off_b.t()
    rounding = (torch.finfo(out_dtype).eps + sums + 32 * FLOAT32) * (size_a @ size_b.t())
    assert ((out.double() - old - a.double() @ b.double().t()).abs() <= bound + rounding).all()


def test_product_wants_both_contiguous_along_the_sum():
    a, one = torch.ones(16, 16).to(E4M3), torch.ones(1)
    for first, second in ((a.t(), a.t()), (a, a)):
        with pytest.raises(ValueError, match="contiguous along K"):
            scaled_matmul(first, second, torch.empty(16, 16), one, one)


def test_kernels_between_products_note_what_their_largest_number_is(draw, implementation, noting):
    tables = rope_tables(12, 16, device=draw(torch.float32, 1).device)
    weight, options = draw(torch.bfloat16, 64), {"implementation": implementation}
    forward = {
        "norm": lambda x: rms_norm(x, weight, 1e-5, **options),
        "norm, residual": lambda x: rms_norm_residual(x, weight, 1e-5, **options)[0],
        "added, norm": lambda x: add_rms_norm(x, draw(torch.bfloat16, 12, 1, 64), weight, 1e-5, **options)[0],
        "swiglu": lambda x: swiglu(x, **options),
        "rotation": lambda x: rope_qkv(x, *tables, 2, 1, **options)[0],
    }
    for name, function in forward.items():
        x = draw(torch.bfloat16, 12, 1, 64) * 1
        y = function(x)
        (dx,) = torch.autograd.grad(y, x, draw(torch.bfloat16, *y.shape, requires_grad=False) * 1e-3)
        for what in (dx,) if name == "rotation" else (y, dx):
            cells = noted_largest(what)
            assert cells is not None and cells.max() == what.abs().max() > 0, name
            what.detach().mul_(2)  # as autograd does that adds to a gradient
            assert noted_largest(what) is None, "it is not the largest number any more"


@pytest.fixture
def noting():
    note_largest_numbers(True)
    yield
    note_largest_numbers(False)
