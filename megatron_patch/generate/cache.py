"""Keys and values of every token so far, in blocks of a few tokens: memory holds what answers use, not what they might.

The layout is that of PagedAttention (Kwon et al. 2023, arXiv:2309.06180): a sequence owns a list of blocks, in any
order.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from megatron_patch.kernels.cache_write import write_blocks

BLOCK = 16  # tokens

# What idle rows of a batch read and write. No sequence owns it.
SCRATCH = 0


@dataclass
class BlockCache:
    """The memory: keys and values [L, blocks, G, BLOCK, D] of this rank's layers and KV groups.

    A group's tokens of a block lie beside each other, because one program of decoding's attention reads them.
    """

    keys: torch.Tensor
    values: torch.Tensor

    @classmethod
    def empty(
        cls, layers: int, blocks: int, groups: int, head_dim: int, dtype: torch.dtype, device: torch.device | str
    ) -> BlockCache:
        """Zeros, so that a block that nothing was written to holds finite numbers."""
        shape = (layers, blocks, groups, BLOCK, head_dim)
        return cls(torch.zeros(shape, dtype=dtype, device=device), torch.zeros(shape, dtype=dtype, device=device))

    def write(self, layer: int, places: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Put tokens' keys and values [T, G, D] where `places` int64 [T] (block · BLOCK + offset) say."""
        write_blocks(keys, values, self.keys[layer], self.values[layer], places)


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
    # int32 [rows + 1, M]: each row's blocks, then SCRATCH; the last row owns none.
    table: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.owned = [[] for _ in range(self.rows)]
        self.table = np.full((self.rows + 1, blocks_of(self.longest)), SCRATCH, dtype=np.int32)
        self.free = list(range(self.blocks - 1, SCRATCH, -1))

    def grow(self, row: int, tokens: int) -> bool:
        """Let a row own blocks for `tokens`; False, and no change, where the cache has too few."""
        owned = self.owned[row]
        missing = blocks_of(tokens) - len(owned)
        if missing > len(self.free):
            return False
        if missing > 0:
            new = [self.free.pop() for _ in range(missing)]
            self.table[row, len(owned) : len(owned) + missing] = new
            owned += new
        return True

    def release(self, row: int) -> None:
        """The row's blocks are free again."""
        self.free += reversed(self.owned[row])
        self.owned[row] = []
        self.table[row] = SCRATCH

    def places(self, row: int, first: int, last: int) -> list[int]:
        """Where tokens `first` to `last` of a row lie in the cache, as `BlockCache.write` takes them."""
        owned = self.owned[row]
        return [owned[token // BLOCK] * BLOCK + token % BLOCK for token in range(first, last)]
