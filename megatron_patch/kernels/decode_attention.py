"""Attention of one new token a sequence over keys and values that lie in blocks: what decoding does in every layer.

Each query reads all keys and values of its sequence once, so memory's speed is the limit. Few sequences would keep few
multiprocessors busy. So the keys of a sequence are split: each program reads one part and leaves its softmax
unfinished, and a second kernel joins the parts (split-KV, as in Dao et al. 2023, "Flash-Decoding for long-context
inference").
"""

from __future__ import annotations

import torch

from ._dispatch import ceil_div, kernel, multiprocessors, next_power_of_two, tl, use_triton

_TILE = 64  # keys that a program reads at once
_MOST_SPLITS = 64
# Programs a multiprocessor that hide each other's waits for memory.
_PROGRAMS = 4


def decode_attention(
    q: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    table: torch.Tensor,
    lengths: torch.Tensor,
    *,
    scale: float,
    implementation: str | None = None,
) -> torch.Tensor:
    """softmax(scale · q kᵀ) v of one query a sequence.

    Args:
        q: [B, N, D].
        keys, values: [blocks, T, G, D], T tokens a block.
        table: int32 [B, M], the blocks of each sequence in order.
        lengths: int32 [B], tokens of each sequence, its new one included; at least 1.

    Returns:
        [B, N·D] in q's dtype; sums in float32.

    Raises:
        ValueError: shapes do not agree.
    """
    _check(q, keys, values, table, lengths)
    if use_triton(implementation, q):
        return _decode(q.contiguous(), keys, values, table, lengths, scale)
    return decode_attention_reference(q, keys, values, table, lengths, scale)


def decode_attention_reference(q, keys, values, table, lengths, scale) -> torch.Tensor:
    """The same with every sequence's blocks gathered beside each other first."""
    batch, heads, head_dim = q.shape
    groups = keys.shape[2]
    k, v = (memory[table.long()].flatten(1, 2).float() for memory in (keys, values))  # [B, M·T, G, D]
    grouped = q.float().view(batch, groups, heads // groups, head_dim)
    scores = torch.einsum("bghd,bsgd->bghs", grouped, k) * scale
    absent = torch.arange(k.shape[1], device=q.device) >= lengths[:, None]
    weights = scores.masked_fill(absent[:, None, None], -float("inf")).softmax(dim=-1)
    return torch.einsum("bghs,bsgd->bghd", weights, v).reshape(batch, heads * head_dim).to(q.dtype)


def _check(q, keys, values, table, lengths) -> None:
    if q.dim() != 3 or keys.dim() != 4 or keys.shape != values.shape or keys.shape[3] != q.shape[2]:
        raise ValueError(
            f"q is {list(q.shape)}, keys {list(keys.shape)}, values {list(values.shape)}; they must be [B, N, D] and twice "
            "[blocks, T, G, D]."
        )
    if q.shape[1] % keys.shape[2]:
        raise ValueError(f"q has {q.shape[1]} heads and keys {keys.shape[2]} groups; heads must be a multiple of groups.")
    if table.dim() != 2 or table.shape[0] != q.shape[0] or lengths.shape != q.shape[:1]:
        raise ValueError(
            f"table is {list(table.shape)} and lengths {list(lengths.shape)}; for {q.shape[0]} queries they must be "
            f"[{q.shape[0]}, M] and [{q.shape[0]}]."
        )


def splits(batch: int, groups: int, longest: int, device: torch.device) -> int:
    """Into how many parts a sequence's keys are cut. No length decides it, so a CUDA graph can hold the launch."""
    wanted = ceil_div(_PROGRAMS * multiprocessors(device), batch * groups)
    return max(1, min(wanted, ceil_div(longest, _TILE), _MOST_SPLITS))


def _decode(q, keys, values, table, lengths, scale):
    batch, heads, head_dim = q.shape
    groups, block = keys.shape[2], keys.shape[1]
    parts = splits(batch, groups, table.shape[1] * block, q.device)
    out = torch.empty_like(q)
    # Of each part: its sum of values [D], then its largest score and its sum of exponentials.
    partial = torch.empty(batch, heads, parts, head_dim, dtype=torch.float32, device=q.device)
    state = torch.empty(batch, heads, parts, 2, dtype=torch.float32, device=q.device)
    sizes = dict(
        HEADS=heads // groups,
        HEADS_P2=max(next_power_of_two(heads // groups), 1 if heads == groups else 16),
        D=head_dim,
        D_P2=next_power_of_two(head_dim),
        SPLITS=parts,
        WIDEN=not q.is_cuda,  # Triton's interpreter multiplies the bits of 16-bit numbers
    )
    _part[(batch, groups, parts)](
        q, keys, values, table, lengths, partial, state, scale, table.shape[1], heads,
        keys.stride(0), keys.stride(1), keys.stride(2), TOKENS=block, TILE=_TILE, **sizes, num_warps=4,
    )  # fmt: skip
    _join[(batch, heads)](
        partial, state, out, heads, D=head_dim, D_P2=sizes["D_P2"], SPLITS=parts, SPLITS_P2=next_power_of_two(parts), num_warps=2
    )
    return out.view(batch, heads * head_dim)


@kernel
def _part(
    q, keys, values, table, lengths, partial, state, scale, width, heads, block_stride, token_stride, group_stride,
    TOKENS: tl.constexpr, TILE: tl.constexpr, HEADS: tl.constexpr, HEADS_P2: tl.constexpr, D: tl.constexpr, D_P2: tl.constexpr,
    SPLITS: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """One part of one sequence's keys, for the HEADS queries of one KV group."""
    row, group, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    length = tl.load(lengths + row)
    # Parts are whole tiles, so that only the last one of a sequence is cut.
    size = tl.cdiv(tl.cdiv(length, TILE), SPLITS) * TILE
    first, last = part * size, tl.minimum(length, (part + 1) * size)
    head, column = tl.arange(0, HEADS_P2), tl.arange(0, D_P2)
    queries = (row * heads + group * HEADS + head)[:, None] * D + column[None, :]
    inside = (head < HEADS)[:, None] & (column < D)[None, :]
    query = tl.load(q + queries, mask=inside, other=0.0)
    largest = tl.full([HEADS_P2], float("-inf"), tl.float32)
    total = tl.zeros([HEADS_P2], tl.float32)
    summed = tl.zeros([HEADS_P2, D_P2], tl.float32)
    for start in range(first, last, TILE):
        token = start + tl.arange(0, TILE)
        there = token < last
        block = tl.load(table + row * width + token // TOKENS, mask=there, other=0).to(tl.int64)
        place = block * block_stride + (token % TOKENS) * token_stride + group * group_stride
        at, wanted = place[:, None] + column[None, :], there[:, None] & (column < D)[None, :]
        key = tl.load(keys + at, mask=wanted, other=0.0)
        value = tl.load(values + at, mask=wanted, other=0.0)
        if HEADS_P2 == 1:  # a product of one row is no work for tensor cores
            scores = tl.sum(query.to(tl.float32) * key.to(tl.float32), axis=1)[None, :]
        elif WIDEN:
            scores = tl.dot(query.to(tl.float32), tl.trans(key.to(tl.float32)), input_precision="ieee")
        else:
            scores = tl.dot(query, tl.trans(key), input_precision="ieee")
        scores = tl.where(there[None, :], scores * scale, float("-inf"))
        new_largest = tl.maximum(largest, tl.max(scores, axis=1))
        weights = tl.exp(scores - new_largest[:, None])
        shrunk = tl.exp(largest - new_largest)
        total = total * shrunk + tl.sum(weights, axis=1)
        if HEADS_P2 == 1:
            more = tl.sum(tl.trans(weights) * value.to(tl.float32), axis=0)[None, :]
        elif WIDEN:
            more = tl.dot(weights.to(value.dtype).to(tl.float32), value.to(tl.float32), input_precision="ieee")
        else:
            more = tl.dot(weights.to(value.dtype), value, input_precision="ieee")
        summed = summed * shrunk[:, None] + more
        largest = new_largest
    parts = (row * heads + group * HEADS + head) * SPLITS + part
    tl.store(partial + parts[:, None] * D + column[None, :], summed, mask=inside)
    tl.store(state + parts * 2, largest, mask=head < HEADS)
    tl.store(state + parts * 2 + 1, total, mask=head < HEADS)


@kernel
def _join(partial, state, out, heads, D: tl.constexpr, D_P2: tl.constexpr, SPLITS: tl.constexpr, SPLITS_P2: tl.constexpr):
    """The parts of one query's softmax as one; a part without keys has the largest score −inf and the sum 0."""
    query = tl.program_id(0) * heads + tl.program_id(1)
    part, column = tl.arange(0, SPLITS_P2), tl.arange(0, D_P2)
    there = part < SPLITS
    largest = tl.load(state + (query * SPLITS + part) * 2, mask=there, other=float("-inf"))
    totals = tl.load(state + (query * SPLITS + part) * 2 + 1, mask=there, other=0.0)
    weights = tl.exp(largest - tl.max(largest, axis=0))
    at = (query * SPLITS + part)[:, None] * D + column[None, :]
    sums = tl.load(partial + at, mask=there[:, None] & (column < D)[None, :], other=0.0)
    found = tl.sum(sums * weights[:, None], axis=0) / tl.sum(totals * weights, axis=0)
    tl.store(out + query * D + column, found.to(out.dtype.element_ty), mask=column < D)
