import pytest
import torch

from megatron_patch.kernels.adamw import adamw_step_, grad_norm_squared, join_float32, split_float32

OPTIONS = dict(lr=3e-3, beta1=0.9, beta2=0.95, eps=1e-3, weight_decay=0.1)


def torch_adamw(parameter):
    o = OPTIONS
    betas = (o["beta1"], o["beta2"])
    return torch.optim.AdamW([parameter], lr=o["lr"], betas=betas, eps=o["eps"], weight_decay=o["weight_decay"])


@pytest.mark.parametrize("copy_dtype", [None, torch.bfloat16, torch.float16])
def test_ten_steps_equal_torch_adamw_in_float64(draw, agree, device, implementation, copy_dtype):
    master = draw(torch.float32, 1300, requires_grad=False)
    exp_avg, exp_avg_sq = torch.zeros_like(master), torch.zeros_like(master)
    copy = None if copy_dtype is None else torch.empty_like(master, dtype=copy_dtype)
    scale = torch.tensor(0.125, device=device)
    truth = master.double().requires_grad_()
    optimizer = torch_adamw(truth)
    start = master.clone()
    for step in range(1, 11):
        grad = draw(torch.float32, 1300, requires_grad=False)
        adamw_step_(
            master,
            exp_avg,
            exp_avg_sq,
            grad,
            copy,
            step=step,
            grad_scale=scale,
            implementation=implementation,
            **OPTIONS,
        )
        truth.grad = grad.double() * 0.125
        optimizer.step()
    # Compare what the steps changed: beside the weights themselves an error in an update would be too small to see.
    moves = (master.double() - start.double()).norm()
    assert ((master.double() - truth).norm() / moves).item() < 2e-5
    agree(master, truth.detach())
    state = optimizer.state[truth]
    agree(exp_avg, state["exp_avg"])
    agree(exp_avg_sq, state["exp_avg_sq"])
    if copy is not None:
        agree(copy, master)


def test_a_split_master_loses_no_bit(draw, device, implementation):
    """bfloat16 copy and remainder instead of a float32 master: the same ten steps, bit for bit."""
    whole = draw(torch.float32, 1300, requires_grad=False)
    copy, remainder = torch.empty_like(whole, dtype=torch.bfloat16), torch.empty_like(whole, dtype=torch.int16)
    split_float32(whole, copy, remainder)
    moments = [[torch.zeros_like(whole) for _ in range(2)] for _ in range(2)]
    for step in range(1, 11):
        grad = draw(torch.float32, 1300, requires_grad=False)
        for master, (exp_avg, exp_avg_sq), rounded in zip((whole, remainder), moments, (None, copy)):
            adamw_step_(master, exp_avg, exp_avg_sq, grad, rounded, step=step, implementation=implementation, **OPTIONS)
    assert torch.equal(join_float32(copy, remainder, torch.empty_like(whole)), whole)
    assert torch.equal(copy, whole.bfloat16())
    assert all(torch.equal(*pair) for pair in zip(*moments))


def test_every_number_splits_into_the_nearest_and_a_remainder(device):
    """Every upper half with some lower ones. Both zeros, infinities, subnormals, ties and NaNs are among them."""
    lower = torch.tensor([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], device=device)
    bits = ((torch.arange(1 << 16, device=device)[:, None] << 16) + lower).to(torch.int32)
    values = bits.view(torch.float32)
    rounded, remainder = torch.empty_like(values, dtype=torch.bfloat16), torch.empty_like(values, dtype=torch.int16)
    split_float32(values, rounded, remainder)
    joined = join_float32(rounded, remainder, torch.empty_like(values))
    numbers = ~values.isnan()
    assert torch.equal(joined.view(torch.int32)[numbers], bits[numbers])
    assert torch.equal(rounded.isnan(), ~numbers) and torch.equal(joined.isnan(), ~numbers)
    ties = lower == 0x8000
    usual = values.isfinite() & ~ties
    assert torch.equal(rounded[usual], values.bfloat16()[usual])
    at_ties = values.isfinite() & ties & rounded.isfinite()
    assert ((rounded.float() - values)[at_ties].abs() == (values.bfloat16().float() - values)[at_ties].abs()).all()


def test_low_precision_gradients_are_widened_first(draw, device, implementation):
    grad = draw(torch.float16, 50, requires_grad=False)
    results = []
    for g in (grad, grad.float()):
        master, exp_avg, exp_avg_sq = (torch.full((50,), value, device=device) for value in (1.0, 0.0, 0.0))
        adamw_step_(master, exp_avg, exp_avg_sq, g, None, step=1, implementation=implementation, **OPTIONS)
        results.append(master)
    assert torch.equal(*results)


def test_a_nan_stays_one(device, implementation):
    """Also the NaN that NVIDIA's float32 instructions make, whose bits would round to zero as an integer."""
    master, exp_avg, exp_avg_sq = (torch.zeros(9, device=device) for _ in range(3))
    copy, remainder = torch.zeros(9, dtype=torch.bfloat16, device=device), torch.zeros(9, dtype=torch.int16, device=device)
    grad = torch.full((9,), 0x7FFFFFFF, dtype=torch.int32, device=device).view(torch.float32)
    adamw_step_(remainder, exp_avg, exp_avg_sq, grad, copy, step=1, implementation=implementation, **OPTIONS)
    assert copy.isnan().all() and join_float32(copy, remainder, master).isnan().all()


@pytest.mark.parametrize("found", [0.0, 1.0])
@pytest.mark.parametrize("master_dtype", [torch.float32, torch.int16])
def test_an_overflow_changes_nothing(draw, device, implementation, found, master_dtype):
    tensors = [draw(torch.float32, 70, requires_grad=False).abs() for _ in range(4)]
    tensors[0] = tensors[0].to(master_dtype)
    tensors[3].fill_(float("inf") if found else 1.0)
    copy = torch.zeros(70, dtype=torch.bfloat16, device=device)
    before = [t.clone() for t in (*tensors, copy)]
    found_inf = torch.tensor([found], device=device)
    adamw_step_(*tensors, copy, step=1, found_inf=found_inf, implementation=implementation, **OPTIONS)
    changed = [not torch.equal(a, b) for a, b in zip((*tensors, copy), before, strict=True)]
    assert changed == ([False] * 5 if found else [True, True, True, False, True])


def test_norm_of_scaled_gradients(draw, agree, device, implementation):
    # Squares of these overflow float16, and float32 once a loss scale is in them.
    grads = [
        draw(torch.float16, 33, 5, requires_grad=False) * 1000,
        draw(torch.float32, 3000, requires_grad=False) * 1e17,
    ]
    grads = [g.contiguous() for g in grads]
    scale = torch.tensor(2.0**-60, device=device)
    truth = sum((g.double() * 2.0**-60).square().sum() for g in grads)
    agree(grad_norm_squared(grads, scale, implementation=implementation), truth)
    agree(grad_norm_squared(grads[:1], implementation=implementation), grads[0].double().square().sum())
    grads[1][7] = torch.nan
    assert grad_norm_squared(grads, scale, implementation=implementation).isnan()


def test_errors(draw):
    a, b = torch.zeros(4), torch.zeros(5)
    with pytest.raises(ValueError, match="counts from 1"):
        adamw_step_(a, a, a, a, None, step=0, **OPTIONS)
    with pytest.raises(ValueError, match=r"grad is \[5\]"):
        adamw_step_(a, a, a, b, None, step=1, **OPTIONS)
    with pytest.raises(ValueError, match="exp_avg is torch.float16"):
        adamw_step_(a, a.half(), a, a, None, step=1, **OPTIONS)
    with pytest.raises(ValueError, match="master is torch.int16.*beside a bfloat16 model_copy"):
        adamw_step_(a.short(), a, a, a, a.half(), step=1, **OPTIONS)
