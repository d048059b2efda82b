"""AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101) in one pass over a flat shard, and the gradient's norm.

The arithmetic is that of torch.optim.AdamW: decoupled decay first, bias corrections in float64 on the host, and eps
added after the second moment's root is corrected. On GPUs the kernel takes the hardware's root and quotient, which are
off by at most two units in the last place. Correctly rounded ones make its code 2.4 times as long. The clock does not
show that, since the kernel waits for memory. The power limit does: large models train at it, and there energy is time.

In bf16 training the fp32 master of a weight and its bf16 copy hold the same upper 16 bits, but for rounding. So
`split_float32` keeps the copy and the 16 bits that the copy lacks. No bit is lost. It saves 2 bytes a parameter in
memory, and a step moves 28 bytes a parameter instead of 30.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import repeat

import torch

from ._dispatch import ceil_div, kernel, multiprocessors, tl, use_triton

BLOCK = 1024  # elements that a program takes
_NAN = 0x7FC00000  # what every NaN becomes; rounding one whose bits are all 1 to bfloat16 would overflow to zero
CHUNK = 1 << 22  # elements that the PyTorch path takes at a time; its temporaries are then 16 MiB each


def adamw_step_(
    master: torch.Tensor,
    exp_avg: torch.Tensor,
    exp_avg_sq: torch.Tensor,
    grad: torch.Tensor,
    model_copy: torch.Tensor | None,
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    step: int,
    grad_scale: torch.Tensor | None = None,
    found_inf: torch.Tensor | None = None,
    implementation: str | None = None,
) -> None:
    """One AdamW step, in place on contiguous tensors of one shape. The host does not wait for the device.

    Args:
        master: the weights, float32. Or int16 beside a bfloat16 `model_copy`: the remainder that `split_float32` makes.
        exp_avg, exp_avg_sq: the first and second moment, float32.
        grad: any float dtype.
        model_copy: None, or a tensor of any float dtype that gets the new weights, rounded.
        step: the number of this step, from 1, for the bias corrections.
        grad_scale: None, or one float32 number on the device; `grad` is multiplied by it and not written.
        found_inf: None, or one number on the device. If it is not 0, nothing changes.

    Raises:
        ValueError: step is below 1, shapes or dtypes are others, or a tensor is strided.
    """
    _check(master, exp_avg, exp_avg_sq, grad, model_copy, step)
    if not master.numel():
        return
    numbers = dict(  # in float64: in float32 1 − beta2^step would lose digits in the first steps
        decay=1.0 - lr * weight_decay,
        beta1=beta1,
        beta2=beta2,
        eps=eps,
        step_size=lr / (1.0 - beta1**step),
        root_correction=math.sqrt(1.0 - beta2**step),
    )
    if use_triton(implementation, master):
        _launch(master, exp_avg, exp_avg_sq, grad, model_copy, grad_scale, found_inf, numbers)
    elif found_inf is None or not found_inf.item():
        step_of = _split_reference_ if master.dtype == torch.int16 else adamw_reference_
        chunks = (t.view(-1).split(CHUNK) for t in (master, exp_avg, exp_avg_sq, grad))
        copies = repeat(None) if model_copy is None else model_copy.view(-1).split(CHUNK)
        for weights, mean, mean_of_squares, gradient, copy in zip(*chunks, copies):
            step_of(weights, mean, mean_of_squares, gradient, copy, grad_scale, **numbers)


@torch.no_grad()
def split_float32(values: torch.Tensor, rounded: torch.Tensor, remainder: torch.Tensor) -> None:
    """Write float32 `values` as bfloat16 `rounded` and int16 `remainder`; all three contiguous and of one shape.

    As integers, the bits of the float32 are 65,536 times the bits of the bfloat16, plus the remainder. The remainder is
    signed, −32,768 to 32,767. So `rounded` is the nearest bfloat16. At a tie it is the one farther from zero; torch
    takes the even one. Every NaN becomes the same NaN.
    """
    for part, high, low in zip(*(t.view(-1).split(CHUNK) for t in (values, rounded, remainder)), strict=True):
        bits = part.view(torch.int32).masked_fill(part.isnan(), _NAN)
        low.copy_(bits)  # a conversion to int16 keeps the lower half
        # A lower half from 0x8000 on is a negative remainder, so the upper half must be one more.
        high.view(torch.int16).copy_((bits + 0x8000) >> 16)


@torch.no_grad()
def join_float32(rounded: torch.Tensor, remainder: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """Undo `split_float32`: write the float32 values to `out` and return it. The bits are the same but for NaNs."""
    for high, low, part in zip(*(t.view(-1).split(CHUNK) for t in (rounded, remainder, out)), strict=True):
        bits = part.view(torch.int32)
        bits.copy_(high.view(torch.int16)).bitwise_left_shift_(16).add_(low)
    return out


def grad_norm_squared(
    tensors: Sequence[torch.Tensor],
    scale: torch.Tensor | float | None = None,
    *,
    implementation: str | None = None,
) -> torch.Tensor:
    """Σ (scale · g)² over all elements of all tensors, as one float32 number on their device. The host does not wait.

    Elements are scaled before they are squared: the square of a gradient that carries a loss scale could overflow.
    Non-finite gradients give a non-finite result.

    Raises:
        ValueError: there are no tensors.
    """
    if not tensors:
        raise ValueError("grad_norm_squared got no tensors; pass at least one, since the device of the result is theirs.")
    if use_triton(implementation, tensors[0]):
        return _launch_norm(tensors, scale)
    norms = torch.stack(torch._foreach_norm(list(tensors), 2, dtype=torch.float32))
    return (norms if scale is None else norms * scale).square().sum()


def adamw_reference_(
    master,
    exp_avg,
    exp_avg_sq,
    grad,
    model_copy,
    grad_scale,
    *,
    decay,
    beta1,
    beta2,
    eps,
    step_size,
    root_correction,
) -> None:
    """One step in PyTorch, in place; what stands behind the * is `numbers` in `adamw_step_`."""
    grad = grad.float() if grad_scale is None else grad.float() * grad_scale
    master.mul_(decay)
    exp_avg.lerp_(grad, 1.0 - beta1)
    exp_avg_sq.mul_(beta2).addcmul_(grad, grad, value=1.0 - beta2)
    denominator = exp_avg_sq.sqrt().div_(root_correction).add_(eps)
    master.addcdiv_(exp_avg, denominator, value=-step_size)
    if model_copy is not None:
        model_copy.copy_(master)


def _split_reference_(remainder, exp_avg, exp_avg_sq, grad, model_copy, grad_scale, **numbers) -> None:
    """`adamw_reference_` where the master is a bfloat16 copy and a remainder: joined, stepped and split again."""
    master = join_float32(model_copy, remainder, torch.empty_like(exp_avg))
    adamw_reference_(master, exp_avg, exp_avg_sq, grad, None, grad_scale, **numbers)
    split_float32(master, model_copy, remainder)


def _check(master, exp_avg, exp_avg_sq, grad, model_copy, step) -> None:
    """ValueError for what `adamw_step_` does not take."""
    if step < 1:
        raise ValueError(f"step is {step}; it counts from 1, as the bias corrections need.")
    split = master.dtype == torch.int16 and getattr(model_copy, "dtype", None) == torch.bfloat16
    named = dict(master=master, exp_avg=exp_avg, exp_avg_sq=exp_avg_sq, grad=grad, model_copy=model_copy)
    for name, tensor in named.items():
        if tensor is None:
            continue
        if tensor.shape != master.shape or not tensor.is_contiguous():
            raise ValueError(
                f"{name} is {list(tensor.shape)}, strides {list(tensor.stride())}; "
                f"it must be contiguous and, like master, {list(master.shape)}."
            )
        if tensor.dtype != torch.float32 and name not in ("grad", "model_copy") and not (name == "master" and split):
            allowed = ", or torch.int16 beside a bfloat16 model_copy" if name == "master" else ""
            raise ValueError(f"{name} is {tensor.dtype}; it must be torch.float32{allowed}.")


def _launch(master, exp_avg, exp_avg_sq, grad, model_copy, grad_scale, found_inf, numbers) -> None:
    """`adamw_step_` by the kernel."""
    count, split = master.numel(), master.dtype == torch.int16
    if split:
        model_copy = model_copy.view(torch.int16)  # the kernel works on its bits
    _adamw_kernel[(ceil_div(count, BLOCK),)](
        master, exp_avg, exp_avg_sq, grad, model_copy, grad_scale, found_inf, count, numbers["decay"],
        1.0 - numbers["beta1"], numbers["beta2"], 1.0 - numbers["beta2"], numbers["eps"],
        numbers["step_size"], 1.0 / numbers["root_correction"], split, _NAN, BLOCK,
    )  # fmt: skip


def _launch_norm(tensors, scale) -> torch.Tensor:
    """`grad_norm_squared` by the kernel: each program writes one partial sum, and their order is always the same."""
    device = tensors[0].device
    if scale is not None and not isinstance(scale, torch.Tensor):
        scale = torch.full((), scale, dtype=torch.float32, device=device)
    programs = 8 * multiprocessors(device)
    partial = torch.zeros(len(tensors), programs, dtype=torch.float32, device=device)
    for tensor, sums in zip(tensors, partial, strict=True):
        if tensor.numel():
            grid = (min(programs, ceil_div(tensor.numel(), BLOCK)),)
            _norm_kernel[grid](tensor.contiguous(), scale, sums, tensor.numel(), BLOCK)
    return partial.sum()


@kernel
def _adamw_kernel(
    master_ptr, exp_avg_ptr, exp_avg_sq_ptr, grad_ptr, copy_ptr, scale_ptr, found_inf_ptr, count,
    decay, one_minus_beta1, beta2, one_minus_beta2, eps, step_size, inverse_root_correction,
    SPLIT: tl.constexpr, NAN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    if found_inf_ptr is not None:
        # A step to be skipped masks every element. A masked access moves no bytes, so the step costs next to nothing,
        # and the host need not know of it.
        count = tl.where(tl.load(found_inf_ptr) == 0.0, count, 0)
    mask = offsets < count
    grad = tl.load(grad_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
    if scale_ptr is not None:
        grad *= tl.load(scale_ptr)
    exp_avg = tl.load(exp_avg_ptr + offsets, mask=mask, other=0.0)
    exp_avg_sq = tl.load(exp_avg_sq_ptr + offsets, mask=mask, other=0.0)
    if SPLIT:  # the upper bits are those of the bfloat16 copy, the lower ones the signed remainder
        high = tl.load(copy_ptr + offsets, mask=mask, other=0).to(tl.int32)
        bits = (high << 16) + tl.load(master_ptr + offsets, mask=mask, other=0).to(tl.int32)
        master = bits.to(tl.float32, bitcast=True) * decay
    else:
        master = tl.load(master_ptr + offsets, mask=mask, other=0.0) * decay
    exp_avg += (grad - exp_avg) * one_minus_beta1
    exp_avg_sq = exp_avg_sq * beta2 + grad * grad * one_minus_beta2
    denominator = tl.sqrt(exp_avg_sq) * inverse_root_correction + eps
    master -= step_size * (exp_avg / denominator)
    tl.store(exp_avg_ptr + offsets, exp_avg, mask=mask)
    tl.store(exp_avg_sq_ptr + offsets, exp_avg_sq, mask=mask)
    if SPLIT:
        # As in `split_float32`. A NaN whose bits are all 1 would overflow to zero.
        bits = tl.where(master == master, master.to(tl.int32, bitcast=True), NAN)
        tl.store(master_ptr + offsets, bits.to(tl.int16), mask=mask)
        tl.store(copy_ptr + offsets, ((bits + 0x8000) >> 16).to(tl.int16), mask=mask)
    else:
        tl.store(master_ptr + offsets, master, mask=mask)
        if copy_ptr is not None:
            tl.store(copy_ptr + offsets, master.to(copy_ptr.dtype.element_ty), mask=mask)


@kernel
def _norm_kernel(tensor_ptr, scale_ptr, partial_ptr, count, BLOCK: tl.constexpr):
    program = tl.program_id(0)
    total = tl.zeros([BLOCK], dtype=tl.float32)
    start = program.to(tl.int64) * BLOCK
    while start < count:
        offsets = start + tl.arange(0, BLOCK)
        x = tl.load(tensor_ptr + offsets, mask=offsets < count, other=0.0).to(tl.float32)
        if scale_ptr is not None:
            x *= tl.load(scale_ptr)
        total += x * x
        start += tl.num_programs(0) * BLOCK
    tl.store(partial_ptr + program, tl.sum(total, axis=0))
