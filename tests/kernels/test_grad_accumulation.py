import pytest
import torch

from megatron_patch.kernels.grad_accumulation import accumulate_weight_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("overwrite", [False, True])
def test_sum_is_kept_in_float32(draw, agree, device, dtype, overwrite):
    x, dy = draw(dtype, 70, 176, requires_grad=False), draw(dtype, 70, 344, requires_grad=False)
    before = draw(torch.float32, 344, 176, requires_grad=False)
    # A product that overwrites must not read what was there: 0 · NaN is NaN.
    weight_grad = torch.full_like(before, torch.nan) if overwrite else before.clone()
    accumulate_weight_grad(weight_grad, x, dy, overwrite=overwrite)
    agree(weight_grad, dy.double().t() @ x.double() + (0 if overwrite else before.double()))


def test_errors(draw):
    x, dy = draw(torch.float32, 5, 3), draw(torch.float32, 5, 4)
    with pytest.raises(ValueError, match="torch.float32"):
        accumulate_weight_grad(torch.zeros(4, 3).half(), x, dy)
    with pytest.raises(ValueError, match=r"\[4, 3\]"):
        accumulate_weight_grad(torch.zeros(3, 4), x, dy)
    with pytest.raises(ValueError, match="one dtype"):
        accumulate_weight_grad(torch.zeros(4, 3), x, dy.half())
    with pytest.raises(ValueError, match="tokens"):
        accumulate_weight_grad(torch.zeros(4, 3), x, dy[:4])
