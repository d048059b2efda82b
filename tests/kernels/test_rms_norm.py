import pytest
import torch

from megatron_patch.kernels.rms_norm import add_rms_norm, rms_norm, rms_norm_residual

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
EPS = 1e-5


def norm(x, weight):
    return x / (x.square().mean(-1, keepdim=True) + EPS).sqrt() * weight


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(7, 2, 176), (1, 1, 64), (3, 5, 1025)])
def test_norm_and_its_gradients(draw, agree, truth_of, implementation, dtype, shape):
    x, weight, dy = draw(dtype, *shape), draw(dtype, shape[-1]), draw(dtype, *shape, requires_grad=False)
    x64, weight64, dy64 = truth_of(x, weight, dy)
    y, truth = rms_norm(x, weight, EPS, implementation=implementation), norm(x64, weight64)
    y.backward(dy)
    truth.backward(dy64)
    agree(y, truth)
    agree(x.grad, x64.grad)
    agree(weight.grad, weight64.grad)


def test_float32_weight_under_bfloat16_activations(draw, agree, truth_of, implementation):
    x, weight = draw(torch.bfloat16, 5, 176), draw(torch.float32, 176)
    x64, weight64 = truth_of(x, weight)
    y, truth = rms_norm(x, weight, EPS, implementation=implementation), norm(x64, weight64)
    y.sum().backward()
    truth.sum().backward()
    assert y.dtype == torch.bfloat16 and weight.grad.dtype == torch.float32
    agree(y, truth)
    agree(weight.grad, weight64.grad)


@pytest.mark.parametrize("dtype", DTYPES)
def test_residual_gets_both_gradients_in_one_rounding(draw, agree, truth_of, implementation, dtype):
    x, weight = draw(dtype, 7, 2, 176), draw(dtype, 176)
    dy, dresidual = (draw(dtype, 7, 2, 176, requires_grad=False) for _ in range(2))
    x64, weight64, dy64, dresidual64 = truth_of(x, weight, dy, dresidual)
    y, residual = rms_norm_residual(x, weight, EPS, implementation=implementation)
    assert residual.data_ptr() == x.data_ptr()
    torch.autograd.backward([y, residual], [dy, dresidual])
    torch.autograd.backward([norm(x64, weight64), x64 * 1], [dy64, dresidual64])
    agree(x.grad, x64.grad)
    agree(weight.grad, weight64.grad)


@pytest.mark.parametrize("dtype", DTYPES)
def test_added_residual(draw, agree, truth_of, implementation, dtype):
    x, residual, weight = draw(dtype, 7, 2, 176), draw(dtype, 7, 2, 176), draw(dtype, 176)
    dy, dtotal = (draw(dtype, 7, 2, 176, requires_grad=False) for _ in range(2))
    y, total = add_rms_norm(x, residual, weight, EPS, implementation=implementation)
    agree(total, x.double() + residual.double())
    total64, weight64, dy64, dtotal64 = truth_of(total, weight, dy, dtotal)
    truth = norm(total64, weight64)
    torch.autograd.backward([y, total], [dy, dtotal])
    torch.autograd.backward([truth, total64 * 1], [dy64, dtotal64])
    agree(y, truth)
    agree(x.grad, total64.grad)
    agree(residual.grad, total64.grad)
    agree(weight.grad, weight64.grad)


def test_only_the_residual_used(draw, implementation):
    x, weight = draw(torch.float32, 3, 176), draw(torch.float32, 176)
    rms_norm_residual(x, weight, EPS, implementation=implementation)[1].sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x)) and weight.grad is None


def test_errors_name_the_shapes(draw):
    x, weight = draw(torch.float32, 3, 176), draw(torch.float32, 175)
    with pytest.raises(ValueError, match=r"weight is \[175\].*\[176\]"):
        rms_norm(x, weight, EPS)
    with pytest.raises(ValueError, match="alike"):
        add_rms_norm(x, x.half(), draw(torch.float32, 176), EPS)
    with pytest.raises(ValueError, match="'cuda-c'"):
        rms_norm(x, x[0], EPS, implementation="cuda-c")


@pytest.mark.parametrize("function", [rms_norm, rms_norm_residual, add_rms_norm])
@pytest.mark.parametrize("shape", [(140, 176), (3, 5, 1025)])
def test_weight_gradient_is_added_in_float32(draw, agree, truth_of, implementation, function, shape):
    x, weight, dy = draw(torch.bfloat16, *shape), draw(torch.bfloat16, shape[-1]), draw(torch.bfloat16, *shape)
    before = draw(torch.float32, shape[-1], requires_grad=False)
    x64, weight64, dy64 = truth_of(x, weight, dy)
    norm(x64, weight64).backward(dy64.detach())
    weight_grad = before.clone()
    inputs = (x, torch.zeros_like(x), weight) if function is add_rms_norm else (x, weight)
    y = function(*inputs, EPS, weight_grad=weight_grad, implementation=implementation)
    (y[0] if isinstance(y, tuple) else y).backward(dy)
    assert weight.grad is not None, "hooks on the gradient must run"
    agree(weight_grad, before.double() + weight64.grad)
