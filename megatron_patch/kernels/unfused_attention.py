"""Causal attention in separate kernels (FL false). It skips most of the work behind the diagonal.

A query sees no later key, so half of each [S, S] matrix of scores is never used. Queries are taken in chunks of `CHUNK`
rows, and a chunk's scores end with the last key that its last query sees. At 2048 tokens in chunks of 256 that is 56 %
of the arithmetic and of the bytes.

Scores, probabilities and their gradients are still allocated as whole [S, S] matrices. The part that no chunk reaches
is neither written nor read. Whole matrices let the gradients of keys and values sum over all queries in one product: it
sums in fp32 and rounds once, as a product over the whole matrix would. Sums of separate chunks would round once a
chunk.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ._dispatch import use_triton
from .softmax import causal_softmax_, causal_softmax_backward_

CHUNK = 256  # queries


def causal_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, *, recompute: bool = False, implementation: str | None = None
) -> torch.Tensor:
    """softmax(scale · q kᵀ) v per head under a causal mask: q, k, v [S, B, N, D] → [S, B, N·D].

    Args:
        recompute: keep no probabilities [B·N, S, S] for the backward pass, which computes them again. Nothing else is
            computed twice: the output is not needed for a gradient.
        implementation: of the softmax (see `_dispatch`); the products are torch's.
    """
    triton = use_triton(implementation, q)
    if q.dtype == torch.float16 and not q.is_cuda and not triton:  # a CPU's float16 products take many times float32's
        wide = _CausalAttention.apply(q.float(), k.float(), v.float(), scale, recompute, triton)
        return wide.to(q.dtype)
    return _CausalAttention.apply(q, k, v, scale, recompute, triton)


class _CausalAttention(torch.autograd.Function):
    """`causal_attention`. Saves q, k, v and, without `recompute`, the probabilities."""

    @staticmethod
    def forward(ctx, q, k, v, scale, recompute, triton):
        probabilities = _probabilities(_heads(q), _heads(k), scale, triton)
        out = torch.empty_like(q, memory_format=torch.contiguous_format)
        into, values = _heads(out), _heads(v)
        for rows, end in _chunks(q.shape[0]):
            torch.bmm(probabilities[:, rows, :end], values[:, :end], out=into[:, rows])
        ctx.save_for_backward(q, k, v, None if recompute else probabilities)
        ctx.scale, ctx.triton = scale, triton
        return out.flatten(2)

    @staticmethod
    def backward(ctx, dout):
        q, k, v, probabilities = ctx.saved_tensors
        queries, keys, values, dout = _heads(q), _heads(k), _heads(v), _heads(dout.view_as(q))
        if probabilities is None:
            probabilities = _probabilities(queries, keys, ctx.scale, ctx.triton)
        length = q.shape[0]
        dq, dk, dv = (torch.empty_like(t, memory_format=torch.contiguous_format) for t in (q, k, v))
        dscores = torch.empty_like(probabilities)
        for rows, end in _chunks(length):
            torch.bmm(dout[:, rows], values[:, :end].transpose(1, 2), out=dscores[:, rows, :end])
        # In place: the gradient of the scores takes the memory of the probabilities' gradient.
        causal_softmax_backward_(dscores, probabilities, CHUNK, triton=ctx.triton)
        for rows, end in _chunks(length):
            _scaled(dscores[:, rows, :end], keys[:, :end], ctx.scale, _heads(dq)[:, rows])
            # `rows` counts keys now. The queries from the first of these keys on see some or all of them. What a query
            # does not see has probability and gradient 0, which the softmax kernels wrote up to the chunk's end.
            below = slice(rows.start, length)
            _scaled(dscores[:, below, rows].transpose(1, 2), queries[:, below], ctx.scale, _heads(dk)[:, rows])
            torch.bmm(probabilities[:, below, rows].transpose(1, 2), dout[:, below], out=_heads(dv)[:, rows])
        return dq, dk, dv, None, None, None


def _probabilities(queries: torch.Tensor, keys: torch.Tensor, scale: float, triton: bool) -> torch.Tensor:
    """queries and keys [B·N, S, D] → probabilities [B·N, S, S]. Columns beyond a chunk's last query stay undefined."""
    heads, length, _ = queries.shape
    scores = queries.new_empty(heads, length, length)
    for rows, end in _chunks(length):
        # The scale goes into the product, before its rounding: unscaled scores could overflow float16.
        _scaled(queries[:, rows], keys[:, :end].transpose(1, 2), scale, scores[:, rows, :end])
    return causal_softmax_(scores, CHUNK, triton=triton)


def _scaled(a: torch.Tensor, b: torch.Tensor, scale: float, out: torch.Tensor) -> None:
    """out := scale · a b, for batches of matrices. With beta 0 the content of `out` is not read."""
    torch.baddbmm(out, a, b, beta=0.0, alpha=scale, out=out)


def _chunks(length: int) -> Iterator[tuple[slice, int]]:
    """For each chunk: the rows of its queries, and the number of keys that the last of them sees."""
    for start in range(0, length, CHUNK):
        end = min(start + CHUNK, length)
        yield slice(start, end), end


def _heads(tensor: torch.Tensor) -> torch.Tensor:
    """[S, B, N, D] → [B·N, S, D], a view of contiguous tensors."""
    return tensor.flatten(1, 2).transpose(0, 1)
