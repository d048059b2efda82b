"""One rule for each order of rows: how the shards of 2023's ranks become a Megatron tensor, lazily.

Shapes: H hidden, F ffn, N heads, G KV heads, D head size, T tensor-parallel ranks. In fused QKV a KV head's block is
its N/G query heads, its key head, its value head: [(N/G + 2)·D, H].
"""

from __future__ import annotations

from collections.abc import Sequence

from megatron_patch.errors import UserError
from megatron_patch.formats.lazy import LazyTensor, Rows, stack


def qkv_per_kv_head(shards: Sequence[LazyTensor]) -> LazyTensor:
    """`shards` [(N + 2G)·D/T, H] are blocks of whole KV heads, in megatron-core's own order.

    Returns:
        [(N + 2G)·D, H].
    """
    return stack(list(shards))


def qkv_all_q_first(shards: Sequence[LazyTensor], per_group: int, head: int) -> LazyTensor:
    """`shards` [(N + 2G)·D/T, H] are all of the rank's query heads, then [k, v] of each of its KV heads.

    Args:
        per_group: N/G.
        head: D.

    Returns:
        [(N + 2G)·D, H] in megatron-core's order.

    Raises:
        UserError: a shard's rows are no whole number of KV heads.
    """
    parts = []
    for shard in shards:
        groups = _groups(shard, (per_group + 2) * head)
        parts += _interleaved(shard, 0, shard, groups * per_group * head, groups, per_group, head)
    return stack(parts)


def qkv_separate(queries: Sequence[LazyTensor], key_values: Sequence[LazyTensor], per_group: int, head: int) -> LazyTensor:
    """`queries` [N·D/T, H] and `key_values` [2G·D/T, H], the latter per KV head [k, v].

    Args:
        per_group: N/G.
        head: D.

    Returns:
        [(N + 2G)·D, H] in megatron-core's order.

    Raises:
        UserError: a shard's rows are no whole number of KV heads, or queries and keys do not match.
    """
    parts = []
    for query, key_value in zip(queries, key_values):
        groups = _groups(key_value, 2 * head)
        if query.shape[0] != groups * per_group * head:
            raise UserError(
                f"query has {query.shape[0]} rows on a rank with {groups} KV heads; {groups * per_group * head} belong there."
            )
        parts += _interleaved(query, 0, key_value, 0, groups, per_group, head)
    return stack(parts)


def gate_up_fused(shards: Sequence[LazyTensor]) -> LazyTensor:
    """`shards` [2F/T, H] are the rank's rows of the gate, then its rows of up.

    Returns:
        [2F, H]: all of gate, then all of up.
    """
    half = shards[0].shape[0] // 2
    return stack([Rows(shard, start, start + half) for start in (0, half) for shard in shards])


def gate_up_separate(gates: Sequence[LazyTensor], ups: Sequence[LazyTensor]) -> LazyTensor:
    """`gates` and `ups` [F/T, H] are the ranks' rows of each.

    Returns:
        [2F, H]: all of gate, then all of up.
    """
    return stack([*gates, *ups])


def _groups(shard: LazyTensor, block: int) -> int:
    """How many KV heads, of `block` rows each, a shard holds."""
    if shard.shape[0] % block:
        raise UserError(f"A rank's keys and values have {shard.shape[0]} rows, no multiple of {block}, which one KV head takes.")
    return shard.shape[0] // block


def _interleaved(
    queries: LazyTensor, q_start: int, key_values: LazyTensor, kv_start: int, groups: int, per_group: int, head: int
) -> list[LazyTensor]:
    """Blocks of KV heads: of each its query heads, then its [k, v].

    Query heads come from `queries` from row `q_start` on, [k, v] from `key_values` from row `kv_start` on.
    """
    height = per_group * head
    parts: list[LazyTensor] = []
    for group in range(groups):
        parts.append(Rows(queries, q_start + group * height, q_start + (group + 1) * height))
        parts.append(Rows(key_values, kv_start + group * 2 * head, kv_start + (group + 1) * 2 * head))
    return parts
