import pytest
import torch

from megatron_patch.kernels.thin_products import Tiling, product, product_add_norm, row_product

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
EPS = 1e-5


def norm64(x, weight):
    return x / (x.square().mean(-1, keepdim=True) + EPS).sqrt() * weight


def swiglu64(packed):
    gate, up = packed.chunk(2, -1)
    return gate / (1 + (-gate).exp()) * up


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows, size", [(64, 96), (37, 50)])
@pytest.mark.parametrize("norm, gated, adds", [(True, False, False), (True, True, False), (False, False, True)])
def test_one_row(draw, agree, truth_of, implementation, dtype, rows, size, norm, gated, adds):
    """Whole tiles and cut ones."""
    x, weight, scale, residual = (
        draw(dtype, *shape, requires_grad=False) for shape in ((1, size), (rows * (1 + gated), size), (size,), (1, rows))
    )
    x64, weight64, scale64, residual64 = truth_of(x, weight, scale, residual)
    truth = (norm64(x64, scale64) if norm else x64) @ weight64.t()
    truth = swiglu64(truth) if gated else truth + residual64 if adds else truth
    out = row_product(
        x, weight, norm=scale if norm else None, eps=EPS, residual=residual if adds else None, gated=gated,
        tiling=Tiling(16, 32), implementation=implementation,
    )  # fmt: skip
    # PyTorch rounds the norm's result and the product's too.
    agree(out, truth, roundings=1 if implementation == "triton" else 3)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch, rows, size", [(3, 64, 96), (17, 37, 50)])
@pytest.mark.parametrize("gated", [False, True])
def test_few_rows(draw, agree, truth_of, implementation, dtype, batch, rows, size, gated):
    x, weight = draw(dtype, batch, size, requires_grad=False), draw(dtype, rows * (1 + gated), size, requires_grad=False)
    x64, weight64 = truth_of(x, weight)
    truth = x64 @ weight64.t()
    out = product(x, weight, gated=gated, tiling=Tiling(32, 32), implementation=implementation)
    agree(out, swiglu64(truth) if gated else truth, roundings=1 if implementation == "triton" or not gated else 3)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows, size, splits", [(64, 96, 1), (37, 150, 3), (37, 50, 4)])
def test_few_rows_their_residual_and_norm(draw, agree, truth_of, implementation, dtype, rows, size, splits):
    """Also with a part that has nothing to sum."""
    x, weight, residual, norm = (
        draw(dtype, *shape, requires_grad=False) for shape in ((3, size), (rows, size), (3, rows), (rows,))
    )
    x64, weight64, residual64, norm64_ = truth_of(x, weight, residual, norm)
    truth = x64 @ weight64.t() + residual64
    tiling = Tiling(32, 32, splits)
    found, normed = product_add_norm(x, weight, residual, norm, EPS, tiling=tiling, implementation=implementation)
    agree(found, truth, roundings=1 if implementation == "triton" else 2)
    agree(normed, norm64(found.double(), norm64_))


def test_results_in_float32(draw, agree, truth_of, implementation):
    """As logits are wanted."""
    x, weight = draw(torch.bfloat16, 2, 64, requires_grad=False), draw(torch.bfloat16, 48, 64, requires_grad=False)
    truth = x.double() @ weight.double().t()
    for out in (
        product(x, weight, out_dtype=torch.float32, tiling=Tiling(32, 32), implementation=implementation),
        torch.cat([row_product(row, weight, out_dtype=torch.float32, implementation=implementation) for row in x.split(1)]),
    ):
        assert out.dtype == torch.float32
        assert (out.double() - truth).norm() / truth.norm() < (1e-6 if implementation == "triton" else 4e-3)


def test_too_many_rows():
    with pytest.raises(ValueError, match="from 1 to 1"):
        row_product(torch.zeros(2, 8), torch.zeros(4, 8))
