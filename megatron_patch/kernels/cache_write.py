"""Keys and values of whole prompts into the blocks of a cache: one launch a layer where indexing takes eight."""

from __future__ import annotations

import torch

from ._dispatch import kernel, next_power_of_two, tl, use_triton


def write_blocks(
    k: torch.Tensor,
    v: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    places: torch.Tensor,
    *,
    implementation: str | None = None,
) -> None:
    """Put tokens' keys and values k, v [T, G, D] where `places` int64 [T] (block · tokens of a block + offset) say.

    Args:
        keys, values: [blocks, G, tokens, D], alike in memory. Where places are equal, any of their tokens stays.

    Raises:
        ValueError: shapes do not agree.
    """
    if k.shape != v.shape or k.shape != (len(places), keys.shape[1], keys.shape[3]) or keys.stride() != values.stride():
        raise ValueError(
            f"k is {list(k.shape)} and v {list(v.shape)}; for {len(places)} places and keys of {list(keys.shape)} they must be "
            f"[{len(places)}, {keys.shape[1]}, {keys.shape[3]}]."
        )
    if not use_triton(implementation, k):
        blocks, offsets = places // keys.shape[2], places % keys.shape[2]
        keys[blocks, :, offsets], values[blocks, :, offsets] = k, v
        return
    tokens, groups, head_dim = k.shape
    k, v = (t if t.stride(-1) == 1 else t.contiguous() for t in (k, v))
    if tokens:
        _write[(tokens,)](
            k, v, keys, values, places, groups, k.stride(0), k.stride(1), v.stride(0), v.stride(1), keys.stride(0),
            keys.stride(1), keys.stride(2), TOKENS=keys.shape[2], D=head_dim, D_P2=next_power_of_two(head_dim),
            GROUPS_P2=next_power_of_two(groups), num_warps=4,
        )  # fmt: skip


@kernel
def _write(
    k, v, keys, values, places, groups, k_token, k_group, v_token, v_group, block_stride, group_stride, token_stride,
    TOKENS: tl.constexpr, D: tl.constexpr, D_P2: tl.constexpr, GROUPS_P2: tl.constexpr,
):  # fmt: skip
    """One token."""
    token = tl.program_id(0).to(tl.int64)
    place = tl.load(places + token)
    group, column = tl.arange(0, GROUPS_P2)[:, None], tl.arange(0, D_P2)[None, :]
    mask = (group < groups) & (column < D)
    target = (place // TOKENS) * block_stride + (place % TOKENS) * token_stride + group * group_stride + column
    tl.store(keys + target, tl.load(k + token * k_token + group * k_group + column, mask=mask, other=0.0), mask=mask)
    tl.store(values + target, tl.load(v + token * v_token + group * v_group + column, mask=mask, other=0.0), mask=mask)
