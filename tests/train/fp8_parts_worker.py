"""LoRA layers in FP8 over two ranks against fp64 products of the numbers that FP8 has for the whole matrices.

Each row of each matrix has its largest number in both halves. So a part's factor is the whole's, however it is cut.
"""

from __future__ import annotations

import megatron_patch.core.device  # noqa: F401

import torch
from megatron.core import parallel_state
from torch import distributed

from megatron_patch.core import parallel
from megatron_patch.core.fp8_weights import cast_weights, keep_fp8_copy
from megatron_patch.core.tensor_exchange import exchange_of
from megatron_patch.core.weight_gradients import mark_stale
from megatron_patch.kernels.lora import Blocks
from megatron_patch.model.fp8_linear import FP8, GRADIENTS
from megatron_patch.model.frozen_linear import FrozenLinear, GatheredFrozenLinear, SummedFrozenLinear
from megatron_patch.model.frozen_products import Adapter, FrozenWeight
from tests.tiny import tiny_config

SEQUENCE, BATCH, IN, OUT, RANK, SCALE = 8, 2, 32, 64, 4, 0.25
E4M3 = torch.float8_e4m3fn


def rounded(x: torch.Tensor, kind: torch.dtype) -> torch.Tensor:
    """x with the numbers that FP8 has for it, in float64."""
    factor = torch.finfo(kind).max / x.float().abs().max()
    return (x.float() * factor).to(kind).double() / factor.double()


def drawn(seed: int, *shape: int) -> torch.Tensor:
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).clamp(-2, 2)
    for place in (0, shape[-1] // 2):
        values[..., place] = values[..., place].sign() * 2
    return values.bfloat16()


def parameter(values: torch.Tensor) -> torch.nn.Parameter:
    made = torch.nn.Parameter(values.contiguous())
    made.main_grad = torch.full(made.shape, torch.nan)
    mark_stale(made.main_grad)
    return made


def frozen(values: torch.Tensor) -> FrozenWeight:
    weight = torch.nn.Parameter(values.contiguous())
    keep_fp8_copy(weight)
    cast_weights([weight])
    return FrozenWeight(weight, FP8)


X, DY = drawn(1, SEQUENCE, BATCH, IN), drawn(2, SEQUENCE, BATCH, OUT)
W, A, B = drawn(3, OUT, IN), drawn(4, RANK, IN), drawn(5, OUT, RANK)


def truths() -> tuple[torch.Tensor, ...]:
    """y, and the gradients of x, a and b, of the whole matrices."""
    x, dy, a, b = (one.flatten(0, -2).double() for one in (X, DY, A, B))
    x8, w8, dy8 = (rounded(one, kind) for one, kind in ((x, E4M3), (W, E4M3), (dy, GRADIENTS)))
    y = x8 @ w8.t() + SCALE * x @ a.t() @ b.t()
    dx = dy8 @ w8 + SCALE * dy @ b @ a
    return y.view(DY.shape), dx.view(X.shape), SCALE * (dy @ b).t() @ x, SCALE * dy.t() @ (x @ a.t())


class Rank:
    """One rank of the group, and its parts."""

    def __init__(self) -> None:
        self.group = parallel_state.get_tensor_model_parallel_group()

    def mine(self, axis: int, whole: torch.Tensor) -> torch.Tensor:
        return whole.chunk(2, axis)[self.group.rank()].contiguous()

    def summed(self, matrix: torch.nn.Parameter) -> torch.Tensor:
        """The gradient of a matrix that all ranks have, of which each has computed a part."""
        distributed.all_reduce(whole := matrix.main_grad.clone(), group=self.group)
        return whole

    def column(self, splits: bool) -> None:
        """A layer whose output is cut, and with `splits` its input's sequence."""
        x, a, b = (self.mine(0, X) if splits else X.clone()).requires_grad_(), parameter(A), parameter(self.mine(0, B))
        given = (x, a, b, frozen(self.mine(0, W)), Adapter(Blocks((OUT // 2,), (0,), RANK), SCALE))
        layer, more = (GatheredFrozenLinear, (exchange_of(self.group), 2)) if splits else (FrozenLinear, (None, self.group))
        y = layer.apply(*given, *more)
        y.backward(self.mine(2, DY))
        true_y, true_dx, true_da, true_db = truths()
        name = f"column, SP {splits}: "
        agree(y, self.mine(2, true_y), name + "y")
        agree(x.grad, self.mine(0, true_dx) if splits else true_dx, name + "dx")
        agree(self.summed(a), true_da, name + "da")
        agree(b.main_grad, self.mine(0, true_db), name + "db")

    def row(self) -> None:
        """A layer whose input is cut, and its output's sequence."""
        x, a, b = self.mine(2, X).requires_grad_(), parameter(self.mine(1, A)), parameter(B)
        adapter = Adapter(Blocks((OUT,), (0,), RANK), SCALE)
        y = SummedFrozenLinear.apply(x, a, b, frozen(self.mine(1, W)), adapter, exchange_of(self.group))
        y.backward(self.mine(0, DY))
        true_y, true_dx, true_da, true_db = truths()
        agree(y, self.mine(0, true_y), "row: y")
        agree(x.grad, self.mine(2, true_dx), "row: dx")
        agree(a.main_grad, self.mine(1, true_da), "row: da")
        agree(self.summed(b), true_db, "row: db")


def agree(got: torch.Tensor, truth: torch.Tensor, name: str) -> None:
    assert got.shape == truth.shape and (got.double() - truth).norm() <= 2.0**-7 * truth.norm(), name


if __name__ == "__main__":
    parallel.start(tiny_config(tensor_model_parallel_size=2, sequence_parallel=True))
    here = Rank()
    here.column(splits=True)
    here.column(splits=False)
    here.row()
    parallel.stop()
