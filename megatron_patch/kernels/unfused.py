"""Causal attention in separate kernels (FL false) without most of what lies behind the diagonal.

Queries are taken in chunks of `CHUNK`; a chunk's scores end with the last key that its last query sees. At 2048 tokens in
chunks of 256 that is 56 % of the arithmetic and of the bytes. Scores, probabilities and their gradients lie in whole [S, S]
matrices, of which what no chunk reaches is neither written nor read; so the products that sum over queries (the gradients of
keys and values, chunk of keys by chunk of keys) sum once, in fp32, and round once, as those over whole matrices do.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ._dispatch import use_triton
from .softmax import causal_softmax_, causal_softmax_backward_

CHUNK = 256


def causal_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, *, recompute: bool = False, implementation: str | None = None
) -> torch.Tensor:
    """softmax(scale · q kᵀ) v per head under a causal mask: q, k, v [S, B, N, D] → [S, B, N·D].

    recompute: keep no probabilities for the backward pass, which computes them again; nothing else is computed twice.
    implementation: of the softmax.
    """
    return _CausalAttention.apply(q, k, v, scale, recompute, use_triton(implementation, q))


class _CausalAttention(torch.autograd.Function):
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
        causal_softmax_backward_(dscores, probabilities, CHUNK, triton=ctx.triton)
        for rows, end in _chunks(length):
            _scaled(dscores[:, rows, :end], keys[:, :end], ctx.scale, _heads(dq)[:, rows])
            below = slice(rows.start, length)  # the queries that see this chunk's keys, and some that see a part of them
            _scaled(dscores[:, below, rows].transpose(1, 2), queries[:, below], ctx.scale, _heads(dk)[:, rows])
            torch.bmm(probabilities[:, below, rows].transpose(1, 2), dout[:, below], out=_heads(dv)[:, rows])
        return dq, dk, dv, None, None, None


def _probabilities(queries: torch.Tensor, keys: torch.Tensor, scale: float, triton: bool) -> torch.Tensor:
    """[B·N, S, D] twice → [B·N, S, S], of which what lies to the right of a chunk's last query stays undefined."""
    heads, length, _ = queries.shape
    scores = queries.new_empty(heads, length, length)
    for rows, end in _chunks(length):
        # The scale goes into the product, before its rounding: unscaled scores could overflow float16.
        _scaled(queries[:, rows], keys[:, :end].transpose(1, 2), scale, scores[:, rows, :end])
    return causal_softmax_(scores, CHUNK, triton=triton)


def _scaled(a: torch.Tensor, b: torch.Tensor, scale: float, out: torch.Tensor) -> None:
    torch.baddbmm(out, a, b, beta=0.0, alpha=scale, out=out)


def _chunks(length: int) -> Iterator[tuple[slice, int]]:
    """Of the queries: their rows, and how many keys the last of them sees."""
    for start in range(0, length, CHUNK):
        end = min(start + CHUNK, length)
        yield slice(start, end), end


def _heads(tensor: torch.Tensor) -> torch.Tensor:
    """[S, B, N, D] → [B·N, S, D], a view of contiguous tensors."""
    return tensor.flatten(1, 2).transpose(0, 1)
