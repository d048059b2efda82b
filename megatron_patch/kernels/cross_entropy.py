"""Cross entropy of logits that are split over the vocabulary (Megatron-LM, arXiv:1909.08053, section 3).

loss = log Σ_v exp(logit_v) − logit_label. Each tensor-parallel rank has some columns of the logits; the ranks exchange
their maximum, their sum and the label's logit, which are three numbers a token, and never the logits.
"""

from __future__ import annotations

import torch
import torch.distributed as dist

from ._dispatch import ceil_div, kernel, next_power_of_two, overwrite, tl, use_triton

BLOCK = 4096  # logits that a program of the gradient's kernel takes


def vocab_parallel_cross_entropy(
    logits: torch.Tensor,
    labels: torch.Tensor,
    group: dist.ProcessGroup | None = None,
    vocab_start: int = 0,
    *,
    valid: int | None = None,
    implementation: str | None = None,
) -> torch.Tensor:
    """Loss of each token, in nats: logits [..., V/TP], labels [...] integer → loss [...] float32.

    **The backward writes the gradient over the logits.** They are a step's largest activation, and a second tensor
    would add their size to the step's peak. So nobody may read the logits after the backward, and a second backward
    ends in autograd's in-place error.

    A label below 0 is ignored: its loss and its gradient are 0. A label beyond the vocabulary is never used as an
    index. Its loss is log Σ exp(logits), a finite number that the caller's mask can multiply by 0.

    Args:
        group: the tensor-parallel process group; None for a whole vocabulary.
        vocab_start: the token id of this rank's first column.
        valid: the number of columns, from the first on, that are vocabulary; None for all. The others are padding: they
            are left out of the sum, and their gradient is 0.

    Raises:
        ValueError: the shapes do not agree, or no column is valid.
    """
    valid = logits.shape[-1] if valid is None else valid
    if not 1 <= valid <= logits.shape[-1]:
        raise ValueError(f"{valid} of {logits.shape[-1]} columns are said to be vocabulary; it must be 1 or more of them.")
    if logits.shape[:-1] != labels.shape:
        raise ValueError(
            f"labels are {list(labels.shape)}; for logits {list(logits.shape)} they must be {list(logits.shape[:-1])}."
        )
    if group is not None and dist.get_world_size(group) == 1:
        group = None
    return _CrossEntropy.apply(logits, labels, group, vocab_start, valid, use_triton(implementation, logits))


def statistics_reference(logits: torch.Tensor, targets: torch.Tensor, valid: int) -> tuple[torch.Tensor, ...]:
    """Three numbers for each row of logits [T, V], over the first `valid` columns, each float32 [T].

    The maximum, Σ exp(logit − maximum), and the logit of the row's target (0 where the target is not one of these
    columns). Subtracting the maximum keeps exp from overflowing.
    """
    logits = logits[:, :valid].float()
    maximum = logits.amax(-1)
    total = (logits - maximum[:, None]).exp_().sum(-1)
    inside = (targets >= 0) & (targets < logits.shape[-1])
    at_target = logits.gather(-1, targets.where(inside, 0)[:, None])[:, 0]
    return maximum, total, at_target.where(inside, 0.0)


def gradient_reference(logits: torch.Tensor, targets: torch.Tensor, lse: torch.Tensor, scale: torch.Tensor, valid: int) -> None:
    """logits [T, V] := (softmax − one-hot) · scale [T] in the first `valid` columns, 0 in the others.

    lse [T] is log Σ exp(logit) over all ranks, so exp(logit − lse) is the softmax over the whole vocabulary.
    """
    logits[:, valid:] = 0
    logits = logits[:, :valid]
    gradient = (logits.float() - lse[:, None]).exp_()
    inside = (targets >= 0) & (targets < logits.shape[-1])
    gradient.scatter_add_(-1, targets.where(inside, 0)[:, None], -inside.to(gradient.dtype)[:, None])
    logits.copy_(gradient.mul_(scale[:, None]))


class _CrossEntropy(torch.autograd.Function):
    """`vocab_parallel_cross_entropy`. Saves the logits, to be overwritten, and each token's lse and target."""

    @staticmethod
    def forward(ctx, logits, labels, group, vocab_start, valid, triton):
        logits = logits.contiguous()
        rows = logits.view(-1, logits.shape[-1])
        flat_labels = labels.reshape(-1)
        targets = flat_labels - vocab_start  # columns of this rank; another rank's lie below 0 or beyond the last one
        maximum, total, at_target = (_statistics if triton else statistics_reference)(rows, targets, valid)
        if group is not None:
            maximum, total, at_target = _reduce(maximum, total, at_target, group)
        lse = maximum + total.log()
        ignored = flat_labels < 0
        ctx.save_for_backward(logits, targets, lse, ignored)
        ctx.triton, ctx.valid = triton, valid
        return (lse - at_target).masked_fill(ignored, 0.0).view(labels.shape)

    @staticmethod
    def backward(ctx, dloss):
        logits, targets, lse, ignored = ctx.saved_tensors
        logits = overwrite(logits)  # outside autograd, which would refuse to write over a saved tensor
        scale = dloss.reshape(-1).float().masked_fill(ignored, 0.0)
        rows = logits.view(-1, logits.shape[-1])
        (_gradient if ctx.triton else gradient_reference)(rows, targets, lse, scale, ctx.valid)
        return logits, None, None, None, None, None


def _reduce(maximum, total, at_target, group):
    """Each rank's statistics [T] → those of the whole vocabulary. Sum and target logit share one collective."""
    overall = maximum.clone()
    dist.all_reduce(overall, op=dist.ReduceOp.MAX, group=group)
    # A rank's sum was taken relative to its own maximum. One rank alone has a token's label, the others add 0.
    both = torch.stack([total * (maximum - overall).exp(), at_target])
    dist.all_reduce(both, group=group)
    return overall, both[0], both[1]


def _statistics(logits, targets, valid):
    """`statistics_reference` by the kernel."""
    tokens, vocabulary = logits.shape
    out = torch.empty(3, tokens, dtype=torch.float32, device=logits.device)
    if tokens:
        block = min(8192, next_power_of_two(vocabulary))  # a program takes a whole row, this many logits at a time
        _loss_statistics_kernel[(tokens,)](logits, targets, *out, vocabulary, valid, block, num_warps=max(1, block // 1024))
    return out.unbind()


def _gradient(logits, targets, lse, scale, valid):
    """`gradient_reference` by the kernel."""
    tokens, vocabulary = logits.shape
    if tokens:
        block = min(BLOCK, next_power_of_two(vocabulary))
        grid = (tokens, ceil_div(vocabulary, block))
        _loss_gradient_kernel[grid](logits, targets, lse, scale, vocabulary, valid, block, num_warps=max(1, block // 1024))


@kernel
def _loss_statistics_kernel(
    logits_ptr,
    targets_ptr,
    maximum_ptr,
    total_ptr,
    at_target_ptr,
    VOCABULARY: tl.constexpr,
    VALID: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # VOCABULARY and VALID are compile-time constants: they never change in a run, and Triton's interpreter can loop
    # only up to a constant.
    row = tl.program_id(0)
    logits = logits_ptr + row.to(tl.int64) * VOCABULARY
    target = tl.load(targets_ptr + row)
    inside = (target >= 0) & (target < VALID)
    columns = tl.arange(0, BLOCK)
    # One running maximum for the whole row, so that each logit costs one exponential. Sums run in BLOCK lanes and meet
    # once, at the end. The start is finite: −inf − −inf would be NaN.
    maximum = tl.full((), -1.0e38, dtype=tl.float32)
    total = tl.zeros([BLOCK], dtype=tl.float32)
    for start in range(0, VALID, BLOCK):
        x = tl.load(logits + start + columns, mask=start + columns < VALID, other=-float("inf")).to(tl.float32)
        larger = tl.maximum(maximum, tl.max(x, axis=0))
        total = total * tl.exp(maximum - larger) + tl.exp(x - larger)
        maximum = larger
    tl.store(maximum_ptr + row, maximum)
    tl.store(total_ptr + row, tl.sum(total, axis=0))
    tl.store(at_target_ptr + row, tl.load(logits + target, mask=inside, other=0.0).to(tl.float32))


@kernel
def _loss_gradient_kernel(logits_ptr, targets_ptr, lse_ptr, scale_ptr, vocabulary, valid, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = columns < vocabulary
    logits = logits_ptr + row.to(tl.int64) * vocabulary + columns
    inside = columns < valid
    x = tl.load(logits, mask=inside, other=-float("inf")).to(tl.float32)
    softmax = tl.exp(x - tl.load(lse_ptr + row))
    one_hot = tl.where(inside & (columns == tl.load(targets_ptr + row)), 1.0, 0.0)
    gradient = (softmax - one_hot) * tl.load(scale_ptr + row)
    tl.store(logits, gradient.to(logits_ptr.dtype.element_ty), mask=mask)
