"""Causal attention in separate kernels (FL false). It skips most of the work behind the diagonal.

A query sees no later key, so half of each [S, S] matrix of scores is never used. Queries are taken in chunks of `CHUNK`
rows, and a chunk's scores end with the last key that its last query sees. At 2048 tokens in chunks of 256 that is 56 %
of the arithmetic and of the bytes.

A chunk's scores are made for a few heads at a time, as many as stay in the GPU's cache until the softmax reads them and
writes probabilities over them. So scores never travel to memory. The gradient of the probabilities takes the same way.
Products whose result is narrow, [S, D], take all heads at once: those of a few would leave most of the GPU idle.

Probabilities and the scores' gradients are still allocated as whole [S, S] matrices. The part that no chunk reaches is
neither written nor read. Whole matrices let the gradients of keys and values sum over all queries in one product: it
sums in fp32 and rounds once, as a product over the whole matrix would. Sums of separate chunks would round once a
chunk.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ._dispatch import ceil_div, use_triton
from .softmax import causal_softmax_, causal_softmax_backward_

CHUNK = 256  # queries
# Bytes of scores that are made at a time. The L2 cache of an H100 or H200 has 50 MiB, and a gradient takes two such.
IN_CACHE = 16 << 20


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
    return _CausalAttention.apply(q, k, v, scale, recompute, triton)


class _CausalAttention(torch.autograd.Function):
    """`causal_attention`. Saves q, k, v and, without `recompute`, the probabilities."""

    @staticmethod
    def forward(ctx, q, k, v, scale, recompute, triton):
        queries, keys, values = map(_heads, (q, k, v))
        probabilities = _square(queries)
        out = torch.empty_like(q, memory_format=torch.contiguous_format)
        into = _heads(out)
        for rows, end in _chunks(q.shape[0]):
            for heads in _in_cache(queries, end):
                _probabilities(queries[heads, rows], keys[heads, :end], scale, probabilities[heads, rows, :end], triton)
            torch.bmm(probabilities[:, rows, :end], values[:, :end], out=into[:, rows])
        ctx.save_for_backward(q, k, v, None if recompute else probabilities)
        ctx.scale, ctx.triton = scale, triton
        return out.flatten(2)

    @staticmethod
    def backward(ctx, dout):
        q, k, v, probabilities = ctx.saved_tensors
        queries, keys, values, dout = _heads(q), _heads(k), _heads(v), _heads(dout.view_as(q))
        again = probabilities is None
        probabilities = _square(queries) if again else probabilities
        length = q.shape[0]
        dq, dk, dv = (torch.empty_like(t, memory_format=torch.contiguous_format) for t in (q, k, v))
        dscores = _square(queries)
        for rows, end in _chunks(length):
            for heads in _in_cache(queries, end):
                known, wanted = probabilities[heads, rows, :end], dscores[heads, rows, :end]
                if again:
                    _probabilities(queries[heads, rows], keys[heads, :end], ctx.scale, known, ctx.triton)
                torch.bmm(dout[heads, rows], values[heads, :end].transpose(1, 2), out=wanted)
                causal_softmax_backward_(wanted, known, triton=ctx.triton)
            _scaled(dscores[:, rows, :end], keys[:, :end], ctx.scale, _heads(dq)[:, rows])
        for rows, _ in _chunks(length):
            # `rows` counts keys now. The queries from the first of these keys on see some or all of them. What a query
            # does not see has probability and gradient 0, which the softmax kernels wrote up to the chunk's end.
            below = slice(rows.start, length)
            _scaled(dscores[:, below, rows].transpose(1, 2), queries[:, below], ctx.scale, _heads(dk)[:, rows])
            torch.bmm(probabilities[:, below, rows].transpose(1, 2), dout[:, below], out=_heads(dv)[:, rows])
        return dq, dk, dv, None, None, None


def _square(queries: torch.Tensor) -> torch.Tensor:
    """Memory for [B·N, S, S], for queries [B·N, S, D]."""
    heads, length, _ = queries.shape
    return queries.new_empty(heads, length, length)


def _probabilities(queries: torch.Tensor, keys: torch.Tensor, scale: float, out: torch.Tensor, triton: bool) -> None:
    """out [n, rows, end] := probabilities of some heads' queries [n, rows, D] and keys [n, end, D]."""
    # The scale goes into the product, before its rounding: unscaled scores could overflow float16.
    _scaled(queries, keys.transpose(1, 2), scale, out)
    causal_softmax_(out, triton=triton)


def _scaled(a: torch.Tensor, b: torch.Tensor, scale: float, out: torch.Tensor) -> None:
    """out := scale · a b, for batches of matrices. With beta 0 the content of `out` is not read."""
    torch.baddbmm(out, a, b, beta=0.0, alpha=scale, out=out)


def _chunks(length: int) -> Iterator[tuple[slice, int]]:
    """For each chunk: the rows of its queries, and the number of keys that the last of them sees."""
    for start in range(0, length, CHUNK):
        end = min(start + CHUNK, length)
        yield slice(start, end), end


def _in_cache(queries: torch.Tensor, end: int) -> Iterator[slice]:
    """The heads [B·N] in groups of like size; a chunk's scores over `end` keys fit `IN_CACHE` for each group."""
    heads, length, _ = queries.shape
    one = min(CHUNK, length) * end * queries.element_size()
    size = ceil_div(heads, ceil_div(heads * one, max(IN_CACHE, one)))
    for first in range(0, heads, size):
        yield slice(first, first + size)


def _heads(tensor: torch.Tensor) -> torch.Tensor:
    """[S, B, N, D] → [B·N, S, D], a view of contiguous tensors."""
    return tensor.flatten(1, 2).transpose(0, 1)
