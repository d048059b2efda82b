import pytest
import torch

from megatron_patch.kernels.swiglu import swiglu


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(7, 2, 688), (1, 2), (2, 4098)])
def test_product_and_gradient(draw, agree, truth_of, implementation, dtype, shape):
    packed, dy = draw(dtype, *shape), draw(dtype, *shape[:-1], shape[-1] // 2, requires_grad=False)
    packed64, dy64 = truth_of(packed, dy)
    gate, up = packed64.chunk(2, -1)
    truth = gate / (1 + (-gate).exp()) * up
    y = swiglu(packed, implementation=implementation)
    y.backward(dy)
    truth.backward(dy64)
    agree(y, truth)
    agree(packed.grad, packed64.grad)


def test_strided_input(draw, implementation):
    wide = draw(torch.float32, 3, 20, requires_grad=False)
    torch.testing.assert_close(
        swiglu(wide[:, :12], implementation=implementation),
        swiglu(wide[:, :12].contiguous(), implementation=implementation),
    )


def test_odd_width_is_an_error(draw):
    with pytest.raises(ValueError, match="even"):
        swiglu(draw(torch.float32, 3, 7))
