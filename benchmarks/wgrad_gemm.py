"""A Triton product that was tried for weight gradients instead of cuBLAS: dyᵀ x added to float32 memory.

A library's product that accumulates reads and writes the whole float32 gradient while its tensor cores rest. Here two
programs share a multiprocessor, so that one adds its tile to memory while the other multiplies. The memory system
itself adds the tile (a bulk reduction through a tensor descriptor), so no program waits for the old value. Two
micro-batches can be one product without being copied together.

It is not used. benchmarks/kernels.py measures it: at LLaMA-2 7B's shapes on an H200 it is slower than torch.addmm,
because Triton's main loop is slower than cuBLAS's by more than all this saves.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from megatron_patch.kernels._dispatch import ceil_div, kernel, multiprocessors, tl


class GemmConfig(NamedTuple):
    """How the product is cut: sizes of a tile (out, in, tokens), warps, pipeline stages, and the last step.

    programs: on each multiprocessor; 0 means one program for each tile. epilogue: "add" loads the old value, adds and
    stores; "atomic" adds in memory; "bulk" adds in memory through the bulk copy engine.
    """

    block_out: int = 128
    block_in: int = 128
    block_tokens: int = 64
    warps: int = 4
    stages: int = 3
    programs: int = 0
    epilogue: str = "bulk"
    parts: int = 2
    tiles_in_group: int = 8


def weight_grad_gemm(
    weight_grad: torch.Tensor,
    pairs: Sequence[tuple[torch.Tensor, torch.Tensor]],
    *,
    overwrite: bool = False,
    config: GemmConfig | None = None,
) -> None:
    """weight_grad [out, in] float32 (+)= Σ dyᵀ x over one or two pairs (x [tokens, in], dy [tokens, out]).

    Two pairs are two micro-batches with the same number of tokens. They become one product with twice the tokens: the
    gradient is read and written once, and nothing is copied. x and dy are contiguous, bfloat16 or float16; in and out
    are multiples of 8, since the bulk copy engine needs rows of whole 16 bytes.

    Raises:
        ValueError: shapes, dtypes or strides are others.
    """
    _check(weight_grad, pairs)
    config = config or GemmConfig()
    _launch(weight_grad, *pairs[0], *pairs[-1], len(pairs), "store" if overwrite else config.epilogue, config)


def _check(weight_grad, pairs) -> None:
    if len(pairs) not in (1, 2):
        raise ValueError(f"pairs holds {len(pairs)} of (x, dy); it must hold 1 or 2.")
    for x, dy in pairs:
        if x.dtype not in (torch.bfloat16, torch.float16) or x.dtype != dy.dtype:
            raise ValueError(f"x is {x.dtype} and dy {dy.dtype}; both must be bfloat16 or both float16.")
        if x.shape[0] != pairs[0][0].shape[0] or dy.shape[0] != x.shape[0]:
            raise ValueError(f"x is {list(x.shape)} and dy {list(dy.shape)}; all must have the same number of tokens.")
        if tuple(weight_grad.shape) != (dy.shape[1], x.shape[1]) or weight_grad.dtype != torch.float32:
            raise ValueError(
                f"weight_grad is {weight_grad.dtype} {list(weight_grad.shape)}; it must be torch.float32"
                f" [{dy.shape[1]}, {x.shape[1]}] for these x and dy."
            )
        if x.shape[1] % 8 or dy.shape[1] % 8 or not (x.is_contiguous() and dy.is_contiguous()):
            raise ValueError(
                f"x {list(x.shape)} and dy {list(dy.shape)} must be contiguous with in and out"
                " multiples of 8;"
                " use accumulate_weight_grad."
            )


def _launch(weight_grad, x0, dy0, x1, dy1, count, epilogue, config) -> None:
    from triton.tools.tensor_descriptor import TensorDescriptor

    (tokens, n), m, c = x0.shape, dy0.shape[1], config
    tiles = ceil_div(m, c.block_out) * ceil_div(n, c.block_in)
    programs = min(tiles, c.programs * multiprocessors(weight_grad.device)) if c.programs else tiles
    inputs = []
    for x, dy in ((x0, dy0), (x1, dy1)):
        inputs.append(TensorDescriptor.from_tensor(dy, [c.block_tokens, c.block_out]))
        inputs.append(TensorDescriptor.from_tensor(x, [c.block_tokens, c.block_in]))
    part = TensorDescriptor.from_tensor(weight_grad, [c.block_out, c.block_in // c.parts])
    _gemm_kernel[(programs,)](
        weight_grad, part, *inputs, m, n, tokens, count, ceil_div(tiles, programs), epilogue, c.block_out,
        c.block_in, c.block_tokens, c.parts, c.tiles_in_group, num_warps=c.warps, num_stages=c.stages,
    )  # fmt: skip


@kernel
def _gemm_kernel(
    grad_ptr, grad_parts, dy0, x0, dy1, x1, m, n, TOKENS: tl.constexpr, PAIRS: tl.constexpr,
    TURNS: tl.constexpr, EPILOGUE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr, PARTS: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    tiles_m, tiles_n = tl.cdiv(m, BLOCK_M), tl.cdiv(n, BLOCK_N)
    for turn in range(0, TURNS):
        # A turn beyond the last tile reads zeros and writes nothing: both ends check the tensor's bounds.
        tile = tl.program_id(0) + turn * tl.num_programs(0)
        group = tile // (GROUP * tiles_n)
        height = tl.maximum(tl.minimum(tiles_m - group * GROUP, GROUP), 1)
        row = (group * GROUP + tile % (GROUP * tiles_n) % height) * BLOCK_M
        column = tile % (GROUP * tiles_n) // height * BLOCK_N
        sums = tl.zeros([BLOCK_M, BLOCK_N], dtype=tl.float32)
        for token in range(0, TOKENS, BLOCK_K):
            sums = tl.dot(dy0.load([token, row]).T, x0.load([token, column]), sums)
        if PAIRS == 2:
            for token in range(0, TOKENS, BLOCK_K):
                sums = tl.dot(dy1.load([token, row]).T, x1.load([token, column]), sums)
        if EPILOGUE == "bulk" or EPILOGUE == "store":
            if PARTS == 1:
                if EPILOGUE == "store":
                    grad_parts.store([row, column], sums)
                else:
                    grad_parts.atomic_add([row, column], sums)
            else:
                # The tile is added in parts: the copy engine's buffer in shared memory need not hold a whole tile.
                halves = tl.permute(tl.reshape(sums, (BLOCK_M, 2, BLOCK_N // 2)), (0, 2, 1))
                left, right = tl.split(halves)
                if EPILOGUE == "store":
                    grad_parts.store([row, column], left)
                    grad_parts.store([row, column + BLOCK_N // 2], right)
                else:
                    grad_parts.atomic_add([row, column], left)
                    grad_parts.atomic_add([row, column + BLOCK_N // 2], right)
        else:
            rows, columns = row + tl.arange(0, BLOCK_M), column + tl.arange(0, BLOCK_N)
            pointers = grad_ptr + rows.to(tl.int64)[:, None] * n + columns[None, :]
            mask = (rows < m)[:, None] & (columns < n)[None, :]
            if EPILOGUE == "atomic":
                tl.atomic_add(pointers, sums, mask=mask, sem="relaxed")
            else:
                tl.store(pointers, tl.load(pointers, mask=mask) + sums, mask=mask)
