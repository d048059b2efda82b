"""A matrix with a product of two thin ones added, W + scale · B·A: what a merged LoRA is, read a few rows at a time."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass, field

import torch

from megatron_patch.errors import UserError
from megatron_patch.formats.lazy import LazyTensor, load

# Rows of a product that are computed at a time. Reads begin and end anywhere, and a library of products may round a
# row otherwise among other numbers of rows; blocks in fixed places give a weight the same bits at every reading.
_BLOCK = 64
_KEPT = 16  # thin matrices; threads read q, k and v in turn, of two layers at most, which makes twelve


@dataclass(frozen=True)
class ThinMatrices:
    """The last few A and B that were read, whole and in fp32; several threads may ask."""

    _kept: OrderedDict[int, tuple[LazyTensor, torch.Tensor]] = field(default_factory=OrderedDict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def of(self, tensor: LazyTensor) -> torch.Tensor:
        """All of `tensor` [R, C] in fp32, read again if it was forgotten."""
        with self._lock:
            found = self._kept.pop(id(tensor), None)
            # The tensor is kept beside its values, so that its id cannot become another's.
            values = load(tensor).float() if found is None else found[1]
            self._kept[id(tensor)] = (tensor, values)
            if len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
            return values


@dataclass(frozen=True)
class LowRankSum:
    """`base` [R, C] + scale · `b` [R, r] · `a` [r, C], computed in fp32 and rounded to `dtype` once.

    Attributes:
        name: of the sum, for the error where float16 cannot hold it.
        thin: keeps what was read of `a` and `b`; many sums share one.
    """

    base: LazyTensor
    a: LazyTensor
    b: LazyTensor
    scale: float
    dtype: torch.dtype
    name: str
    thin: ThinMatrices = field(compare=False)

    @property
    def shape(self) -> tuple[int, ...]:
        """[R, C]."""
        return self.base.shape

    @property
    def parts(self) -> tuple[LazyTensor, ...]:
        """What it is read from."""
        return self.base, self.a, self.b

    def read(self, first: int, last: int, out: torch.Tensor) -> None:
        """Compute rows `first` to `last` − 1 into `out` [last − first, C].

        Raises:
            UserError: a file is damaged, or float16 cannot hold a value.
        """
        original = torch.empty(out.shape, dtype=self.base.dtype)
        self.base.read(first, last, original)
        a, b = self.thin.of(self.a), self.thin.of(self.b)
        for start in range(first // _BLOCK * _BLOCK, last, _BLOCK):
            low, high = max(first, start), min(last, start + _BLOCK)
            added = (b[start : start + _BLOCK] @ a)[low - start : high - start].mul_(self.scale)
            out[low - first : high - first] = added.add_(original[low - first : high - first])
        if self.dtype == torch.float16 and bool((out.isinf() & ~original.isinf()).any()):
            raise UserError(f"{self.name} holds values above 65504, which float16 cannot hold; use --dtype bfloat16.")
