"""Attention of one new token a sequence over keys and values that lie in blocks: what decoding does in every layer.

Each query reads all keys and values of its sequence once, so memory's speed is the limit. Few sequences would keep few
multiprocessors busy. So the keys of a sequence are split: each program reads one part and leaves its softmax
unfinished, and a second kernel joins the parts (split-KV, as in Dao et al. 2023, "Flash-Decoding for long-context
inference"). Query and key are rotated on the way, and the first part's program puts the new key and value into the
cache: of kernels as short as these, each that is saved counts.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from ._dispatch import ceil_div, kernel, launch_options, multiprocessors, next_power_of_two, tl, use_triton
from .rope import rope_reference

_MOST_SPLITS = 64


class Reading(NamedTuple):
    """How keys are read, by which it gets faster or slower and nothing else.

    Attributes:
        tile: keys that a program reads at once.
        programs: a multiprocessor, that hide each other's waits for memory.
        dot: whether tensor cores multiply; they take 16 queries, however few there are.
        overlap: whether a kernel may begin while the one before it ends.
    """

    tile: int = 64
    programs: int = 4
    dot: bool = True
    warps: int = 4
    stages: int = 3
    overlap: bool = False


READING = Reading()


def decode_attention(
    packed: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    table: torch.Tensor,
    positions: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    *,
    scale: float,
    reading: Reading = READING,
    implementation: str | None = None,
) -> torch.Tensor:
    """softmax(scale · q kᵀ) v of one query a sequence, whose key and value join the cache.

    Args:
        packed: [B, G·(N/G+2)·D], of each group its queries, its key, its value, not rotated yet.
        keys, values: [blocks, G, T, D], T tokens a block, keys rotated; the new token's are written.
        table: int32 [B, M], the blocks of each sequence in order; rows may be apart, elements not.
        positions: int32 [B], the new token's place in its sequence, from 0.
        cos, sin: float32 [P, D/2], a row for each place.

    Returns:
        [B, N·D] in packed's dtype; sums in float32.

    Raises:
        ValueError: shapes do not agree.
    """
    _check(packed, keys, values, table, positions, cos, sin)
    if use_triton(implementation, packed):
        return _decode(packed.contiguous(), keys, values, table, positions, cos, sin, scale, reading)
    return decode_attention_reference(packed, keys, values, table, positions, cos, sin, scale)


def decode_attention_reference(packed, keys, values, table, positions, cos, sin, scale) -> torch.Tensor:
    """The same step by step, with every sequence's blocks gathered beside each other."""
    batch, (_, groups, block, head_dim), place = len(packed), keys.shape, positions.long()
    grouped = packed.view(batch, groups, -1, head_dim)
    turned = rope_reference(grouped[:, :, :-1].flatten(1, 2).unsqueeze(1), cos[place], sin[place])
    turned = turned.view(batch, groups, -1, head_dim)
    blocks = table[torch.arange(batch, device=table.device), place // block].long()
    keys[blocks, :, place % block], values[blocks, :, place % block] = turned[:, :, -1], grouped[:, :, -1]
    # [B, M, G, T, D] → [B, G, M·T, D]
    k, v = (memory[table.long()].transpose(1, 2).flatten(2, 3).float() for memory in (keys, values))
    scores = torch.einsum("bghd,bgsd->bghs", turned[:, :, :-1].float(), k) * scale
    absent = torch.arange(k.shape[2], device=packed.device) > place[:, None]
    # What another sequence left there may be NaN, of which 0 times is NaN.
    v = v.masked_fill(absent[:, None, :, None], 0.0)
    weights = scores.masked_fill(absent[:, None, None], -float("inf")).softmax(dim=-1)
    return torch.einsum("bghs,bgsd->bghd", weights, v).reshape(batch, -1).to(packed.dtype)


def _check(packed, keys, values, table, positions, cos, sin) -> None:
    if packed.dim() != 2 or keys.dim() != 4 or keys.shape != values.shape or keys.stride() != values.stride():
        raise ValueError(
            f"packed is {list(packed.shape)}, keys {list(keys.shape)}, values {list(values.shape)}; they must be [B, …] and "
            "twice [blocks, G, T, D], alike in memory."
        )
    groups, head_dim = keys.shape[1], keys.shape[3]
    if packed.shape[1] % (groups * head_dim) or packed.shape[1] < 3 * groups * head_dim:
        raise ValueError(
            f"packed has {packed.shape[1]} columns, which must be a multiple of G·D = {groups * head_dim}, 3 or more."
        )
    batch = len(packed)
    if table.dim() != 2 or len(table) != batch or table.stride(1) != 1 or positions.shape != (batch,):
        raise ValueError(
            f"table is {list(table.shape)} and positions {list(positions.shape)}; for {batch} queries they must be "
            f"[{batch}, M] and [{batch}]."
        )
    if cos.shape != sin.shape or cos.shape[1:] != (head_dim // 2,) or not (cos.is_contiguous() and sin.is_contiguous()):
        raise ValueError(f"cos is {list(cos.shape)} and sin {list(sin.shape)}; they must be [P, {head_dim // 2}], contiguous.")


def splits(batch: int, groups: int, longest: int, reading: Reading, device: torch.device) -> int:
    """Into how many parts a sequence's keys are cut. No length decides it, so a CUDA graph can hold the launch."""
    wanted = ceil_div(reading.programs * multiprocessors(device), batch * groups)
    return max(1, min(wanted, ceil_div(longest, reading.tile), _MOST_SPLITS))


def _decode(packed, keys, values, table, positions, cos, sin, scale, reading):
    batch, (_, groups, block, head_dim) = len(packed), keys.shape
    queries = packed.shape[1] // (groups * head_dim) - 2  # of a group
    parts = splits(batch, groups, table.shape[1] * block, reading, packed.device)
    out = torch.empty(batch, groups * queries * head_dim, dtype=packed.dtype, device=packed.device)
    # Of each part: its sum of values [D], then its largest score and its sum of exponentials.
    partial = torch.empty(batch, groups * queries, parts, head_dim + 2, dtype=torch.float32, device=packed.device)
    dot = reading.dot or queries > 1
    options = launch_options(packed, reading.overlap)
    _part[(batch, groups, parts)](
        packed, keys, values, table, positions, cos, sin, partial, out, scale, table.stride(0), keys.stride(0),
        keys.stride(1), keys.stride(2), parts, TOKENS=block, TILE=reading.tile, HEADS=queries,
        HEADS_P2=max(next_power_of_two(queries), 16 if dot else 1), D=head_dim,
        D_P2=max(next_power_of_two(head_dim), 16 if dot else 1), WHOLE=parts == 1, DOT=dot, WIDEN=not packed.is_cuda,
        OVERLAP=reading.overlap, num_warps=reading.warps, num_stages=reading.stages, **options,
    )  # fmt: skip
    if parts > 1:
        _join[(batch, groups * queries)](
            partial, out, groups * queries, parts, D=head_dim, D_P2=next_power_of_two(head_dim),
            PARTS_P2=next_power_of_two(parts), OVERLAP=reading.overlap, num_warps=2, **options,
        )  # fmt: skip
    return out


@kernel
def _part(
    packed, keys, values, table, positions, cos, sin, partial, out, scale, table_stride, block_stride, group_stride,
    token_stride, parts, TOKENS: tl.constexpr, TILE: tl.constexpr, HEADS: tl.constexpr, HEADS_P2: tl.constexpr, D: tl.constexpr,
    D_P2: tl.constexpr, WHOLE: tl.constexpr, DOT: tl.constexpr, WIDEN: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """One part of one sequence's keys, for the HEADS queries of one KV group. The first part has the new key too."""
    row, group, part, groups = tl.program_id(0), tl.program_id(1), tl.program_id(2), tl.num_programs(1)
    head, column = tl.arange(0, HEADS_P2), tl.arange(0, D_P2)
    position = tl.load(positions + row)
    wide, is_head = column < D, head < HEADS
    # Element i of a head's first half is turned with element i of its second half, and these with those.
    half, other = column % (D // 2), (column + D // 2) % D
    cosine = tl.load(cos + position * (D // 2) + half, mask=wide, other=0.0)
    sine = tl.load(sin + position * (D // 2) + half, mask=wide, other=0.0)
    sine = tl.where(column < D // 2, -sine, sine)
    if OVERLAP:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    base = packed + (row * groups + group) * ((HEADS + 2) * D)
    inside = is_head[:, None] & wide[None, :]
    query = tl.load(base + head[:, None] * D + column[None, :], mask=inside, other=0.0).to(tl.float32)
    across = tl.load(base + head[:, None] * D + other[None, :], mask=inside, other=0.0).to(tl.float32)
    query = (query * cosine[None, :] + across * sine[None, :]).to(packed.dtype.element_ty)
    key = tl.load(base + HEADS * D + column, mask=wide, other=0.0).to(tl.float32)
    across = tl.load(base + HEADS * D + other, mask=wide, other=0.0).to(tl.float32)
    key = (key * cosine + across * sine).to(keys.dtype.element_ty)
    value = tl.load(base + (HEADS + 1) * D + column, mask=wide, other=0.0)
    mine = tl.load(table + row * table_stride + position // TOKENS).to(tl.int64)
    place = mine * block_stride + group * group_stride + (position % TOKENS) * token_stride + column
    if part == 0:
        tl.store(keys + place, key, mask=wide)
        tl.store(values + place, value, mask=wide)
    score = tl.sum(query.to(tl.float32) * key.to(tl.float32)[None, :], axis=1) * scale
    largest = tl.where(part == 0, score, float("-inf"))
    total = tl.where(part == 0, 1.0, 0.0) + tl.zeros([HEADS_P2], tl.float32)
    summed = tl.where(part == 0, value.to(tl.float32), 0.0)[None, :] + tl.zeros([HEADS_P2, D_P2], tl.float32)
    # Parts are whole tiles, so that only the last one of a sequence is cut.
    size = tl.cdiv(tl.cdiv(position, TILE), parts) * TILE
    first, last = part * size, tl.minimum(position, (part + 1) * size)
    for start in range(first, last, TILE):
        token = start + tl.arange(0, TILE)
        there = token < last
        block = tl.load(table + row * table_stride + token // TOKENS, mask=there, other=0).to(tl.int64)
        places = block * block_stride + group * group_stride + (token % TOKENS) * token_stride
        at, wanted = places[:, None] + column[None, :], there[:, None] & wide[None, :]
        k = tl.load(keys + at, mask=wanted, other=0.0)
        v = tl.load(values + at, mask=wanted, other=0.0)
        if not DOT:
            scores = tl.sum(query.to(tl.float32) * k.to(tl.float32), axis=1)[None, :]
        elif WIDEN:  # Triton's interpreter multiplies the bits of 16-bit numbers
            scores = tl.dot(query.to(tl.float32), tl.trans(k.to(tl.float32)), input_precision="ieee")
        else:
            scores = tl.dot(query, tl.trans(k), input_precision="ieee")
        scores = tl.where(there[None, :], scores * scale, float("-inf"))
        new_largest = tl.maximum(largest, tl.max(scores, axis=1))
        weights = tl.exp(scores - new_largest[:, None])
        shrunk = tl.exp(largest - new_largest)
        total = total * shrunk + tl.sum(weights, axis=1)
        if not DOT:
            more = tl.sum(tl.trans(weights) * v.to(tl.float32), axis=0)[None, :]
        elif WIDEN:
            more = tl.dot(weights.to(v.dtype).to(tl.float32), v.to(tl.float32), input_precision="ieee")
        else:
            more = tl.dot(weights.to(v.dtype), v, input_precision="ieee")
        summed = summed * shrunk[:, None] + more
        largest = new_largest
    number = row * (groups * HEADS) + group * HEADS + head
    if WHOLE:
        found = (summed / total[:, None]).to(out.dtype.element_ty)
        tl.store(out + number[:, None] * D + column[None, :], found, mask=inside)
    else:
        result = partial + (number * parts + part) * (D + 2)
        tl.store(result[:, None] + column[None, :], summed, mask=inside)
        tl.store(result + D, largest, mask=is_head)
        tl.store(result + D + 1, total, mask=is_head)


@kernel
def _join(partial, out, heads, parts, D: tl.constexpr, D_P2: tl.constexpr, PARTS_P2: tl.constexpr, OVERLAP: tl.constexpr):
    """The parts of one query's softmax as one; a part without keys has the largest score −inf and the sum 0."""
    query = tl.program_id(0) * heads + tl.program_id(1)
    part, column = tl.arange(0, PARTS_P2), tl.arange(0, D_P2)
    there = part < parts
    if OVERLAP:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    at = partial + (query * parts + part) * (D + 2)
    largest = tl.load(at + D, mask=there, other=float("-inf"))
    totals = tl.load(at + D + 1, mask=there, other=0.0)
    weights = tl.exp(largest - tl.max(largest, axis=0))
    sums = tl.load(at[:, None] + column[None, :], mask=there[:, None] & (column < D)[None, :], other=0.0)
    found = tl.sum(sums * weights[:, None], axis=0) / tl.sum(totals * weights, axis=0)
    tl.store(out + query * D + column, found.to(out.dtype.element_ty), mask=column < D)
