"""A lazy tensor that reads from a tensor in memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class InMemory:
    tensor: torch.Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)

    @property
    def dtype(self) -> torch.dtype:
        return self.tensor.dtype

    def read(self, first: int, last: int, out: torch.Tensor) -> None:
        out.copy_(self.tensor[first:last])
