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


def causal_softmax_(scores: torch.Tensor, chunk: int, *, triton: bool) -> torch.Tensor:
    """Write the softmax of square scores [..., S, S] over them, and return them. autograd is not told.

    Rows belong to chunks of `chunk` rows. A row is written as far as its chunk's last row sees, with 0 behind the
    diagonal: `unfused_attention` multiplies blocks of that width. What lies further to the right is neither read nor
    written.
    """
    if triton:
        _launch(_causal_softmax_kernel, scores, (scores, scores), 1.0, chunk)
        return scores
    return scores.copy_(causal_softmax_reference(scores, 1.0))


def causal_softmax_backward_(dp: torch.Tensor, probabilities: torch.Tensor, chunk: int, *, triton: bool) -> torch.Tensor:
    """Write the scores' gradient over `dp` [..., S, S], the probabilities' gradient, and return it.

    Each row is written as far as `causal_softmax_` writes it.
    """
    if triton:
        _launch(_causal_softmax_backward_kernel, probabilities, (dp, probabilities, dp), 1.0, chunk)
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


def _launch(kernel_, shaped, tensors, scale, chunk=MAX_KEYS):
    """Run a kernel on tensors of the shape of `shaped`, one program a row, 512 keys for each warp.

    chunk: how far rows are written (see `causal_softmax_`); MAX_KEYS writes all of each.
    """
    queries, keys = shaped.shape[-2:]
    rows = shaped.numel() // keys if keys else 0
    if rows:
        block = next_power_of_two(keys)
        kernel_[(rows,)](*tensors, queries, keys, scale, chunk, block, num_warps=min(16, max(1, block // 512)))


@kernel
def _causal_softmax_kernel(scores_ptr, probabilities_ptr, queries, keys, scale, chunk, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    visible = row % queries + keys - queries + 1  # keys that this query sees
    written = tl.minimum((visible + chunk - 1) // chunk * chunk, keys)
    columns = tl.arange(0, BLOCK)
    offsets = row.to(tl.int64) * keys + columns  # 64 bits: B·N·S·S passes 2³¹ at 32 heads of 8192 tokens
    # Loads end at a multiple of eight keys, so that each is 16 bytes wide. The keys too many are masked afterwards.
    mask = (columns < (visible + 7) // 8 * 8) & (columns < keys)
    scores = tl.load(scores_ptr + offsets, mask=mask, other=0.0).to(tl.float32) * scale
    scores = tl.where(columns < visible, scores, -float("inf"))
    exponentials = tl.exp(scores - tl.max(scores, axis=0))
    probabilities = exponentials / tl.sum(exponentials, axis=0)
    tl.store(probabilities_ptr + offsets, probabilities.to(probabilities_ptr.dtype.element_ty), mask=columns < written)


@kernel
def _causal_softmax_backward_kernel(dp_ptr, probabilities_ptr, dscores_ptr, queries, keys, scale, chunk, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    visible = row % queries + keys - queries + 1
    written = tl.minimum((visible + chunk - 1) // chunk * chunk, keys)
    columns = tl.arange(0, BLOCK)
    offsets = row.to(tl.int64) * keys + columns
    # As in the forward kernel: loads of 16 bytes, and keys behind the diagonal are masked afterwards.
    mask = (columns < (visible + 7) // 8 * 8) & (columns < keys)
    dp = tl.load(dp_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
    p = tl.load(probabilities_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
    dp = tl.where(columns < visible, dp, 0.0)
    dscores = scale * p * (dp - tl.sum(dp * p, axis=0))
    tl.store(dscores_ptr + offsets, dscores.to(dscores_ptr.dtype.element_ty), mask=columns < written)
