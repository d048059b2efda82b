"""Rotary position embedding (Su et al. 2021, arXiv:2104.09864) in LLaMA's rotate-half convention.

Element i of a head's first half is paired with element i of its second half (Megatron's `rotary_interleaved=False`,
Hugging Face's `rotate_half`): (a, b) → (a·cos − b·sin, b·cos + a·sin). Computed in float32 for every dtype of q and k.
"""

from __future__ import annotations

import torch

from ._dispatch import ceil_div, kernel, next_power_of_two, overwrite, tl, use_triton
from .fp8 import CELLS, cells_to_fill, find_and_note, note_largest


def rope_tables(
    positions: int | torch.Tensor,
    head_dim: int,
    base: float | torch.Tensor = 10000.0,
    device: torch.device | str | None = None,
    *,
    interpolation_factor: float = 1.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin of position · base^(−2i/D) / interpolation_factor, float32, i = 0 … D/2 − 1.

    Args:
        positions: a length S (positions 0 … S−1), or a tensor [S] or, with positions per sample, [S, B].
        base: one for all positions, or float32 [S, 1] with one for each.
        interpolation_factor: the factor of linear scaling. It divides the frequency, as in transformers, and not the
            position: the two round differently.

    Returns:
        Two tables [S, D/2] or [S, B, D/2].

    Raises:
        ValueError: head_dim is odd.
    """
    if head_dim % 2:
        raise ValueError(f"head_dim is {head_dim}; rotary embedding pairs elements and needs an even head size.")
    if not isinstance(positions, torch.Tensor):
        positions = torch.arange(positions, device=device)
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device=device) / head_dim
    frequencies = 1.0 / base**exponents / interpolation_factor
    angles = positions.to(device=device, dtype=torch.float32).unsqueeze(-1) * frequencies
    return angles.cos(), angles.sin()


def rope_qkv(
    qkv: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    num_heads: int,
    num_groups: int,
    *,
    implementation: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Split Megatron's packed projection and rotate q and k in one pass.

    **The Triton kernel overwrites qkv where N = G.** It rotates q and k in qkv's own memory, and q, k, v are strided
    views of it: a copy would move as many bytes again. The linear layer that made qkv does not need its output for a
    gradient. If anything else saved qkv for a backward, autograd raises its in-place error. With N > G the queries of
    all groups cannot be one view [S, B, N, D], so the kernel writes three contiguous tensors (slices of one buffer).
    The backward writes the packed gradient in one kernel.

    Args:
        qkv: [S, B, G·(N/G+2)·D]; for each of the G groups its N/G queries, then its key, then its value.
        cos, sin: float32 [S, D/2] or [S, B, D/2].

    Returns:
        q [S, B, N, D], k [S, B, G, D], v [S, B, G, D].

    Raises:
        ValueError: shapes do not agree, or num_heads is not a multiple of num_groups.
    """
    head_dim = _check_qkv(qkv, cos, sin, num_heads, num_groups)
    return _RopeQKV.apply(qkv, cos, sin, num_heads, num_groups, head_dim, use_triton(implementation, qkv))


def rope_reference(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """x [S, B, N, D] rotated by the angles of the tables, in x's dtype; pass −sin to rotate back."""
    cos, sin = (t.unsqueeze(-2) if t.dim() == 3 else t[:, None, None] for t in (cos, sin))
    a, b = x.float().chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).to(x.dtype)


def _check_qkv(qkv, cos, sin, num_heads, num_groups) -> int:
    """The head size D that qkv's width gives; ValueError if shapes do not agree."""
    if num_groups < 1 or num_heads % num_groups:
        raise ValueError(f"num_heads {num_heads} is not a multiple of num_groups {num_groups}; it must be.")
    slots = num_heads + 2 * num_groups
    if qkv.dim() != 3 or qkv.shape[-1] % (2 * slots):
        raise ValueError(
            f"qkv is {list(qkv.shape)}; with {num_heads} heads and {num_groups} groups it must be [S, B, {slots}·D], D even."
        )
    head_dim = qkv.shape[-1] // slots
    _check_tables(cos, sin, qkv.shape[0], qkv.shape[1], head_dim)
    return head_dim


def _check_tables(cos, sin, length, batch, head_dim) -> None:
    allowed = ((length, head_dim // 2), (length, batch, head_dim // 2))
    if cos.shape != sin.shape or tuple(cos.shape) not in allowed:
        raise ValueError(
            f"cos is {list(cos.shape)} and sin {list(sin.shape)}; for these activations both must be"
            f" {list(allowed[0])}, or {list(allowed[1])} with positions per sample (see rope_tables)."
        )


class _RopeQKV(torch.autograd.Function):
    """`rope_qkv`. A rotation's gradient is the rotation back, so only cos and sin are saved."""

    @staticmethod
    def forward(ctx, qkv, cos, sin, num_heads, num_groups, head_dim, triton):
        ctx.save_for_backward(cos, sin)
        ctx.sizes, ctx.triton = (num_heads, num_groups, head_dim), triton
        if triton:
            return _split_and_rotate(qkv, cos, sin, num_heads, num_groups, head_dim)
        q, k, v = _views(qkv, num_heads, num_groups, head_dim)
        return rope_reference(q.flatten(2, 3), cos, sin), rope_reference(k, cos, sin), v.clone()

    @staticmethod
    def backward(ctx, dq, dk, dv):
        (cos, sin), (num_heads, num_groups, head_dim) = ctx.saved_tensors, ctx.sizes
        length, batch = dq.shape[:2]
        dqkv = dq.new_empty(length, batch, (num_heads + 2 * num_groups) * head_dim)
        if ctx.triton:
            _join_and_rotate_back(dq, dk, dv, cos, sin, dqkv, num_heads // num_groups)
        else:
            q, k, v = _views(dqkv, num_heads, num_groups, head_dim)
            q.copy_(rope_reference(dq, cos, -sin).view_as(q))
            k.copy_(rope_reference(dk, cos, -sin))
            v.copy_(dv)
            find_and_note(dqkv)
        return dqkv, None, None, None, None, None, None


def _views(packed, num_heads, num_groups, head_dim):
    """Views of a packed tensor: q [S, B, G, N/G, D], k and v [S, B, G, D]."""
    length, batch, _ = packed.shape
    heads = num_heads // num_groups
    grouped = packed.view(length, batch, num_groups, heads + 2, head_dim)
    return grouped[:, :, :, :heads], grouped[:, :, :, heads], grouped[:, :, :, heads + 1]


def _split_and_rotate(qkv, cos, sin, num_heads, num_groups, head_dim):
    """The forward kernel: q, k and v as `rope_qkv` returns them."""
    length, batch, _ = qkv.shape
    in_place = num_heads == num_groups and qkv.is_contiguous()
    source = overwrite(qkv) if in_place else qkv.contiguous()
    target = source if in_place else torch.empty_like(source).view(-1)
    _launch_rotation(source, target, cos, sin, num_groups, num_heads // num_groups, head_dim, in_place)
    if in_place:
        q, k, v = _views(target, num_heads, num_groups, head_dim)
        return q[:, :, :, 0], k, v
    sizes = [length * batch * heads * head_dim for heads in (num_heads, num_groups, num_groups)]
    q, k, v = target.split(sizes)
    return tuple(part.view(length, batch, -1, head_dim) for part in (q, k, v))


def _launch_rotation(source, target, cos, sin, groups, queries, head_dim, in_place):
    """Run the forward kernel; `queries` is N/G, the queries of one group."""
    length, batch = source.shape[:2]
    slots = groups * (queries + 2)
    if source.numel():
        grid, half, heads_block, half_block = _grid(length * batch, slots, head_dim)
        cos, sin, stride_s, stride_b = _table_strides(cos, sin)
        _rotation_kernel[grid](
            source, target, cos, sin, batch, groups, stride_s, stride_b, queries, half, in_place,
            heads_block, half_block,
        )  # fmt: skip


def _join_and_rotate_back(dq, dk, dv, cos, sin, dqkv, queries):
    """Write dqkv from dq, dk and dv; `queries` is N/G. The kernel takes any strides but the last, which must be 1."""
    length, batch, groups, head_dim = dk.shape
    dq, dk, dv = (t if t.stride(-1) == 1 else t.contiguous() for t in (dq, dk, dv))
    cells = cells_to_fill(dqkv)
    if dqkv.numel():
        grid, half, heads_block, half_block = _grid(length * batch, groups * (queries + 2), head_dim)
        cos, sin, stride_s, stride_b = _table_strides(cos, sin)
        _rotation_backward_kernel[grid](
            dq, dk, dv, dqkv, cells, cos, sin, batch, groups, stride_s, stride_b, *dq.stride()[:3], *dk.stride()[:3],
            *dv.stride()[:3], queries, half, CELLS, heads_block, half_block,
        )  # fmt: skip
    note_largest(dqkv, cells)


def _grid(tokens, slots, head_dim):
    """(grid, D/2, heads of a program, its columns).

    A program takes one token and up to 32 of its heads: at D = 128 4096 elements, 32 for each thread of four warps.
    """
    heads_block = min(32, next_power_of_two(slots))
    return (
        (tokens, ceil_div(slots, heads_block)),
        head_dim // 2,
        heads_block,
        next_power_of_two(head_dim // 2),
    )


def _table_strides(cos, sin):
    """The tables, and their strides over S and over B (0 where all samples share one row).

    cos and sin are usually two halves of one tensor. The kernels read them there; copies would be two launches a layer.
    """
    if cos.stride() != sin.stride() or cos.stride(-1) != 1:
        cos, sin = cos.contiguous(), sin.contiguous()
    return cos, sin, cos.stride(0), cos.stride(1) if cos.dim() == 3 else 0


@kernel
def _rotation_kernel(
    source_ptr, target_ptr, cos_ptr, sin_ptr, batch, groups, stride_s, stride_b,
    QUERIES: tl.constexpr, HALF: tl.constexpr, IN_PLACE: tl.constexpr, HEADS_BLOCK: tl.constexpr, HALF_BLOCK: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0)
    # A slot is one head of the packed row: N/G queries, a key and a value for each group.
    slot = tl.program_id(1) * HEADS_BLOCK + tl.arange(0, HEADS_BLOCK)
    group, place = slot // (QUERIES + 2), slot % (QUERIES + 2)
    column = tl.arange(0, HALF_BLOCK)
    slots = groups * (QUERIES + 2)
    is_value = place == QUERIES + 1
    wanted = slot < slots
    if IN_PLACE:  # values are not rotated, so the kernel neither reads nor writes them
        wanted = wanted & (place <= QUERIES)
    mask = wanted[:, None] & (column < HALF)[None, :]
    angle = (token // batch) * stride_s + (token % batch) * stride_b + column
    cos = tl.load(cos_ptr + angle, mask=column < HALF, other=0.0)[None, :]
    sin = tl.load(sin_ptr + angle, mask=column < HALF, other=0.0)[None, :]
    source = (token.to(tl.int64) * slots + slot)[:, None] * (2 * HALF) + column[None, :]
    # Both halves of a pair are loaded before either is stored, so a program may write where it read.
    a = tl.load(source_ptr + source, mask=mask, other=0.0).to(tl.float32)
    b = tl.load(source_ptr + source + HALF, mask=mask, other=0.0).to(tl.float32)
    rotated_a = tl.where(is_value[:, None], a, a * cos - b * sin)
    rotated_b = tl.where(is_value[:, None], b, b * cos + a * sin)
    if IN_PLACE:
        target = source
    else:
        # All queries, then all keys, then all values, each [S, B, heads, D]
        tokens = tl.num_programs(0).to(tl.int64)
        query = token.to(tl.int64) * groups * QUERIES + group * QUERIES + place
        key = tokens * groups * QUERIES + token.to(tl.int64) * groups + group
        row = tl.where(place < QUERIES, query, tl.where(is_value, key + tokens * groups, key))
        target = row[:, None] * (2 * HALF) + column[None, :]
    tl.store(target_ptr + target, rotated_a.to(target_ptr.dtype.element_ty), mask=mask)
    tl.store(target_ptr + target + HALF, rotated_b.to(target_ptr.dtype.element_ty), mask=mask)


@kernel
def _rotation_backward_kernel(
    dq_ptr, dk_ptr, dv_ptr, dqkv_ptr, cells_ptr, cos_ptr, sin_ptr, batch, groups, stride_s, stride_b,
    dq_s, dq_b, dq_n, dk_s, dk_b, dk_n, dv_s, dv_b, dv_n,
    QUERIES: tl.constexpr, HALF: tl.constexpr, CELLS: tl.constexpr, HEADS_BLOCK: tl.constexpr, HALF_BLOCK: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0)
    s, b = (token // batch).to(tl.int64), (token % batch).to(tl.int64)
    slot = tl.program_id(1) * HEADS_BLOCK + tl.arange(0, HEADS_BLOCK)
    group, place = slot // (QUERIES + 2), slot % (QUERIES + 2)
    column = tl.arange(0, HALF_BLOCK)
    slots = groups * (QUERIES + 2)
    mask = (slot < slots)[:, None] & (column < HALF)[None, :]
    is_query, is_key = (place < QUERIES)[:, None], (place == QUERIES)[:, None]
    is_value = (place == QUERIES + 1)[:, None]
    angle = s * stride_s + b * stride_b + column
    cos = tl.load(cos_ptr + angle, mask=column < HALF, other=0.0)[None, :]
    sin = tl.load(sin_ptr + angle, mask=column < HALF, other=0.0)[None, :]
    dq = dq_ptr + s * dq_s + b * dq_b + (group * QUERIES + place)[:, None] * dq_n + column[None, :]
    dk = dk_ptr + s * dk_s + b * dk_b + group[:, None] * dk_n + column[None, :]
    dv = dv_ptr + s * dv_s + b * dv_b + group[:, None] * dv_n + column[None, :]
    pointers = tl.where(is_query, dq, tl.where(is_key, dk, dv))
    da = tl.load(pointers, mask=mask, other=0.0).to(tl.float32)
    db = tl.load(pointers + HALF, mask=mask, other=0.0).to(tl.float32)
    # The transposed rotation, which turns by −angle. Values pass through.
    back_a = tl.where(is_value, da, da * cos + db * sin).to(dqkv_ptr.dtype.element_ty)
    back_b = tl.where(is_value, db, db * cos - da * sin).to(dqkv_ptr.dtype.element_ty)
    target = (token.to(tl.int64) * slots + slot)[:, None] * (2 * HALF) + column[None, :]
    tl.store(dqkv_ptr + target, back_a, mask=mask)
    tl.store(dqkv_ptr + target + HALF, back_b, mask=mask)
    if cells_ptr is not None:
        most = tl.max(tl.maximum(tl.abs(back_a.to(tl.float32)), tl.abs(back_b.to(tl.float32))), axis=1)
        tl.atomic_max(cells_ptr + token % CELLS, tl.max(most, axis=0), sem="relaxed")
