import pytest
import torch

from megatron_patch.kernels.wgrad_gemm import GemmConfig, weight_grad_gemm

CUDA = torch.cuda.is_available()
# The interpreter multiplies bfloat16 as if it were integers.
DTYPES = [torch.float16, torch.bfloat16] if CUDA else [torch.float16]
SMALL = dict(block_out=64, block_in=64, block_tokens=32)
CONFIGS = [
    GemmConfig(**SMALL, epilogue="add"),
    GemmConfig(**SMALL, epilogue="atomic", programs=1),
    # The interpreter has no bulk reduction.
    *([GemmConfig(), GemmConfig(block_in=256, warps=8, programs=1), GemmConfig(parts=1)] if CUDA else []),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("pairs", [1, 2])
@pytest.mark.parametrize("overwrite", [False, True])
def test_sum_is_kept_in_float32(draw, agree, dtype, config, pairs, overwrite):
    pytest.importorskip("triton")
    inputs = [
        (draw(dtype, 70, 200, requires_grad=False), draw(dtype, 70, 344, requires_grad=False))
        for _ in range(pairs)
    ]
    before = draw(torch.float32, 344, 200, requires_grad=False)
    weight_grad = torch.full_like(before, torch.nan) if overwrite else before.clone()
    weight_grad_gemm(weight_grad, inputs, overwrite=overwrite, config=config, implementation="triton")
    truth = sum(dy.double().t() @ x.double() for x, dy in inputs) + (0 if overwrite else before.double())
    agree(weight_grad, truth)


def test_unaligned_rows_are_an_error(draw):
    x, dy = draw(torch.bfloat16, 5, 12, requires_grad=False), draw(torch.bfloat16, 5, 16, requires_grad=False)
    with pytest.raises(ValueError, match="multiples of 8"):
        weight_grad_gemm(torch.zeros(16, 12), [(x, dy)])
    with pytest.raises(ValueError, match="1 or 2"):
        weight_grad_gemm(torch.zeros(16, 12), [(x, dy)] * 3)
