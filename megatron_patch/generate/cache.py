"""Keys and values of every token so far, in blocks of a few tokens: memory holds what answers use, not what they might.

The layout is that of PagedAttention (Kwon et al. 2023, arXiv:2309.06180): a sequence owns a list of blocks, in any
order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

BLOCK = 16  # tokens

# What idle rows of a batch read and write. No sequence owns it.
SCRATCH = 0


@dataclass
class BlockCache:
    """The memory: keys and values [L, blocks, BLOCK, G, D] of this rank's layers and KV groups."""

    keys: torch.Tensor
    values: torch.Tensor

    @classmethod
    def empty(
        cls, layers: int, blocks: int, groups: int, head_dim: int, dtype: torch.dtype, device: torch.device | str
    ) -> BlockCache:
        """Zeros, so that a block that nothing was written to holds finite numbers."""
        shape = (layers, blocks, BLOCK, groups, head_dim)
        return cls(torch.zeros(shape, dtype=dtype, device=device), torch.zeros(shape, dtype=dtype, device=device))

    def write(self, layer: int, places: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Put tokens' keys and values [T, G, D] where `places` int64 [T] (block · BLOCK + offset) say."""
        for memory, new in ((self.keys, keys), (self.values, values)):
            memory[layer].view(-1, *memory.shape[3:]).index_copy_(0, places, new)


def block_bytes(layers: int, groups: int, head_dim: int, dtype: torch.dtype) -> int:
    """Bytes of one block, keys and values of all `layers`."""
    return 2 * layers * BLOCK * groups * head_dim * dtype.itemsize


def blocks_of(tokens: int) -> int:
    """Blocks that hold `tokens`."""
    return -(-tokens // BLOCK)


@dataclass
class BlockTables:
    """Which blocks each row of a batch owns, on the host."""

    rows: int
    blocks: int  # of the cache, the scratch one included
    longest: int  # tokens of a sequence
    owned: list[list[int]] = field(init=False)
    free: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.owned = [[] for _ in range(self.rows)]
        self.free = list(range(self.blocks - 1, SCRATCH, -1))

    def grow(self, row: int, tokens: int) -> bool:
        """Let a row own blocks for `tokens`; False, and no change, where the cache has too few."""
        missing = blocks_of(tokens) - len(self.owned[row])
        if missing > len(self.free):
            return False
        self.owned[row] += [self.free.pop() for _ in range(missing)]
        return True

    def release(self, row: int) -> None:
        """The row's blocks are free again."""
        self.free += reversed(self.owned[row])
        self.owned[row] = []

    def table(self, rows: Sequence[int], device: torch.device | str = "cpu") -> torch.Tensor:
        """int32 [B, M], the blocks of these rows; M is enough for the longest sequence."""
        width = blocks_of(self.longest)
        filled = [self.owned[row] + [SCRATCH] * (width - len(self.owned[row])) for row in rows]
        return torch.tensor(filled, dtype=torch.int32, device=device)

    def places(self, row: int, first: int, last: int) -> list[int]:
        """Where tokens `first` to `last` of a row lie in the cache, as `BlockCache.write` takes them."""
        owned = self.owned[row]
        return [owned[token // BLOCK] * BLOCK + token % BLOCK for token in range(first, last)]
