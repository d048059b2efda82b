"""Scaled causal softmax over attention scores, what Megatron's scaled_upper_triang_masked_softmax computes."""

from __future__ import annotations

import torch

from ._dispatch import kernel, next_power_of_two, tl, use_triton

MAX_KEYS = 65536


def causal_softmax(scores: torch.Tensor, scale: float, *, implementation: str | None = None) -> torch.Tensor:
    """softmax(scale · scores) over the keys that a query may see: [..., Sq, Sk] → probabilities [..., Sq, Sk].

    The mask is aligned at the bottom right: query i sees keys j ≤ i + Sk − Sq. Computed in float32, returned in the
    dtype of scores. Masked probabilities are exactly 0. Their scores have no influence, NaN and infinity included.
    Neither pass writes over its input: memory's bandwidth bounds both, and writing in place would move as many bytes.

    Args:
        scale: what scores are multiplied by first, usually 1 / √D.

    Raises:
        ValueError: Sq > Sk, or Sk > 65536.
    """
    queries, keys = scores.shape[-2:]
    if queries > keys:
        raise ValueError(f"scores are {list(scores.shape)}; {queries} queries need at least as many keys, not {keys}.")
    if keys > MAX_KEYS:
        raise ValueError(f"scores have {keys} keys; a row may have {MAX_KEYS} at most: use fused attention (FL=true).")
    return _CausalSoftmax.apply(scores, scale, use_triton(implementation, scores))


def causal_softmax_reference(scores: torch.Tensor, scale: float) -> torch.Tensor:
    """`causal_softmax` in PyTorch: [..., Sq, Sk] → [..., Sq, Sk]."""
    visible = causal_mask(scores.size(-2), scores.size(-1), scores.device)
    return torch.softmax((scores.float() * scale).masked_fill(~visible, -torch.inf), dim=-1).to(scores.dtype)


def causal_mask(queries: int, keys: int, device: torch.device) -> torch.Tensor:
    """[Sq, Sk], True where query i sees key j: j ≤ i + Sk − Sq."""
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)


def causal_softmax_backward_reference(dp: torch.Tensor, probabilities: torch.Tensor, scale: float) -> torch.Tensor:
    """dscores = scale · p · (dp − Σ_keys dp · p), all [..., Sq, Sk]. dp of a masked entry has no influence."""
    p = probabilities.float()
    visible = causal_mask(p.size(-2), p.size(-1), p.device)
    dp = dp.float().masked_fill(~visible, 0.0)
    return (scale * p * (dp - (dp * p).sum(-1, keepdim=True))).to(probabilities.dtype)


def causal_softmax_(scores: torch.Tensor, *, triton: bool) -> torch.Tensor:
    """Write the softmax of scores [N, Sq, Sk] over them, and return them. autograd is not told.

    Scores may be a part of larger matrices: only the keys of a row need to lie side by side.
    """
    if triton:
        _launch(_causal_softmax_kernel, scores, (scores, scores), 1.0)
        return scores
    return scores.copy_(causal_softmax_reference(scores, 1.0))


def causal_softmax_backward_(dp: torch.Tensor, probabilities: torch.Tensor, *, triton: bool) -> torch.Tensor:
    """Write the scores' gradient over `dp` [N, Sq, Sk], the probabilities' gradient, and return it.

    Both may be a part of larger matrices, the same part of each.
    """
    assert dp.stride() == probabilities.stride(), "the kernel has one set of strides"
    if triton:
        _launch(_causal_softmax_backward_kernel, probabilities, (dp, probabilities, dp), 1.0)
        return dp
    return dp.copy_(causal_softmax_backward_reference(dp, probabilities, 1.0))


class _CausalSoftmax(torch.autograd.Function):
    """`causal_softmax`. Saves the probabilities: the gradient needs them and not the scores."""

    @staticmethod
    def forward(ctx, scores, scale, triton):
        probabilities = _forward(scores, scale) if triton else causal_softmax_reference(scores, scale)
        ctx.save_for_backward(probabilities)
        ctx.scale, ctx.triton = scale, triton
        return probabilities

    @staticmethod
    def backward(ctx, dp):
        (probabilities,) = ctx.saved_tensors
        backward = _backward if ctx.triton else causal_softmax_backward_reference
        return backward(dp, probabilities, ctx.scale), None, None


def _forward(scores, scale):
    scores = scores.contiguous()
    probabilities = torch.empty_like(scores)
    _launch(_causal_softmax_kernel, scores, (scores, probabilities), scale)
    return probabilities


def _backward(dp, probabilities, scale):
    dp = dp.contiguous()
    dscores = torch.empty_like(probabilities)
    _launch(_causal_softmax_backward_kernel, probabilities, (dp, probabilities, dscores), scale)
    return dscores


def _launch(kernel_, shaped, tensors, scale):
    """Run a kernel on tensors of the shape and strides of `shaped`, one program a row, 512 keys for each warp."""
    queries, keys = shaped.shape[-2:]
    if not shaped.numel():
        return
    matrix, row, one = shaped.view(-1, queries, keys).stride() if shaped.is_contiguous() else shaped.stride()
    assert one == 1, "a program loads neighbours"
    block = next_power_of_two(keys)
    rows = shaped.numel() // keys
    kernel_[(rows,)](*tensors, queries, keys, matrix, row, scale, block, num_warps=min(16, max(1, block // 512)))


@kernel
def _causal_softmax_kernel(scores_ptr, probabilities_ptr, queries, keys, matrix_stride, row_stride, scale, BLOCK: tl.constexpr):
    matrix, query = tl.program_id(0) // queries, tl.program_id(0) % queries
    visible = query + keys - queries + 1  # keys that this query sees
    columns = tl.arange(0, BLOCK)
    # 64 bits: B·N·S·S passes 2³¹ at 32 heads of 8192 tokens.
    offsets = matrix.to(tl.int64) * matrix_stride + query.to(tl.int64) * row_stride + columns
    # Loads end at a multiple of eight keys, so that each is 16 bytes wide. The keys too many are masked afterwards.
    mask = (columns < (visible + 7) // 8 * 8) & (columns < keys)
    scores = tl.load(scores_ptr + offsets, mask=mask, other=0.0).to(tl.float32) * scale
    scores = tl.where(columns < visible, scores, -float("inf"))
    exponentials = tl.exp(scores - tl.max(scores, axis=0))
    probabilities = exponentials / tl.sum(exponentials, axis=0)
    tl.store(probabilities_ptr + offsets, probabilities.to(probabilities_ptr.dtype.element_ty), mask=columns < keys)


@kernel
def _causal_softmax_backward_kernel(
    dp_ptr, probabilities_ptr, dscores_ptr, queries, keys, matrix_stride, row_stride, scale, BLOCK: tl.constexpr
):
    matrix, query = tl.program_id(0) // queries, tl.program_id(0) % queries
    visible = query + keys - queries + 1
    columns = tl.arange(0, BLOCK)
    offsets = matrix.to(tl.int64) * matrix_stride + query.to(tl.int64) * row_stride + columns
    # As in the forward kernel: loads of 16 bytes, and keys behind the diagonal are masked afterwards.
    mask = (columns < (visible + 7) // 8 * 8) & (columns < keys)
    dp = tl.load(dp_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
    p = tl.load(probabilities_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
    dp = tl.where(columns < visible, dp, 0.0)
    dscores = scale * p * (dp - tl.sum(dp * p, axis=0))
    tl.store(dscores_ptr + offsets, dscores.to(dscores_ptr.dtype.element_ty), mask=columns < keys)
