"""The kernels that cast to FP8: the largest number, the cast with its transposed copy in several tiles, and blocks.

`fp8_products.py` runs it as its group "casts". `blocks` is a cast that was tried: each 128 numbers have a factor of
their own, so it needs no largest number first and one pass is enough.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from megatron_patch.kernels import fp8
from megatron_patch.kernels._dispatch import ceil_div, kernel, tl
from megatron_patch.kernels.fp8 import CELLS, E4M3, E5M2, LARGEST

WIDTHS = {"4 H": (4096, 4096), "2 FFN": (4096, 22016), "FFN": (4096, 11008), "3 H": (4096, 12288), "weight fc1": (22016, 4096)}
# rows, columns, warps
TILES = (
    (128, 128, 8),
    (128, 128, 4),
    (64, 128, 4),
    (128, 64, 4),
    (64, 64, 4),
    (64, 64, 2),
    (256, 64, 8),
    (64, 256, 8),
    (128, 256, 8),
)


def measure_casts(until: float, tell: Callable[[dict], None]) -> None:
    """Time each kernel on each matrix, and call `tell` with each row."""
    from timing import milliseconds

    for name, (rows, width) in WIDTHS.items():
        x = torch.randn(rows, width, dtype=torch.bfloat16, device="cuda")
        check(x, tell)
        for version, (bytes_each, function) in versions_of(x).items():
            if time.monotonic() > until:
                return tell({"text": f"# casts of {name}: no time was left"})
            try:
                spent = milliseconds(function, 20)
            except Exception as error:  # noqa: BLE001  a tile that does not compile is told, and the next one is tried
                tell({"text": f"{name:12}{version:28} {type(error).__name__}: {str(error)[:90]}"})
                continue
            rate = bytes_each * x.numel() / spent / 1e6
            text = f"{name:12}{version:28}{spent * 1e3:9.1f} µs{rate:8.0f} GB/s"
            tell({"matrix": name, "version": version, "us": spent * 1e3, "GB/s": rate, "text": text})


def versions_of(x: torch.Tensor) -> dict[str, tuple[int, Callable[[], object]]]:
    """What is timed on x, with the bytes that each moves for an element."""
    cells, room = fp8.largest(x), fp8.room(x, E4M3)
    tiles = {f"cast, tile {tile}": (4, lambda tile=tile: launch(x, cells, room, tile)) for tile in TILES}
    return {
        "copy": (4, lambda: x.clone()),
        "largest": (2, lambda: fp8.largest(x)),
        "largest by torch": (2, lambda: x.abs().amax()),
        "blocks": (4, lambda: cast_blocks(x)),
        "cast, values only": (3, lambda: fp8.cast(x, E4M3, turned=False, cells=cells)),
        "cast, turned only": (3, lambda: fp8.cast(x, E4M3, values=False, cells=cells)),
        "largest and cast": (6, lambda: fp8.cast(x, E4M3)),
        **tiles,
    }


def launch(x: torch.Tensor, cells: torch.Tensor, room: fp8.Cast, tile: tuple[int, int, int]) -> None:
    """The cast with another tile."""
    (rows, width), (high, wide, warps) = x.shape, tile
    grid = (ceil_div(rows, high), ceil_div(width, wide))
    fp8._cast_kernel[grid](x, cells, *room, rows, width, LARGEST[E4M3], CELLS, high, wide, num_warps=warps)


def check(x: torch.Tensor, tell: Callable[[dict], None]) -> None:
    """Compare the kernels with PyTorch, bit for bit."""
    for dtype in (E4M3, E5M2):
        ours, right = fp8.cast(x, dtype), fp8.cast(x, dtype, implementation="torch")
        wrong = [(a.float() != b.float()).sum().item() for a, b in zip(ours, right)]
        tell({"text": f"# {list(x.shape)} to {dtype}: {wrong} numbers differ from PyTorch's (values, turned, scale)"})
    values, factors, _, _ = cast_blocks(x)
    back = values.float() * factors.t().repeat_interleave(128, 1)
    tell({"text": f"# blocks: error {((back - x.float()).norm() / x.float().norm()).item():.3e}"})


def cast_blocks(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """x [rows, width] → values [rows, width], their factors [width / 128, rows], turned [width, rows], its factors."""
    rows, width = x.shape
    values = torch.empty(rows, width, dtype=E4M3, device=x.device)
    turned = torch.empty(width, rows, dtype=E4M3, device=x.device)
    along, across = (torch.empty(a // 128, b, device=x.device) for a, b in ((width, rows), (rows, width)))
    grid = (rows // 128, width // 128)
    _blocks_kernel[grid](x, values, turned, along, across, rows, width, LARGEST[E4M3], num_warps=8)
    return values, along, turned, across


@kernel
def _blocks_kernel(x_ptr, values_ptr, turned_ptr, along_ptr, across_ptr, rows, width, LARGEST: tl.constexpr):
    row = tl.program_id(0) * 128 + tl.arange(0, 128)
    column = tl.program_id(1) * 128 + tl.arange(0, 128)
    offsets = row.to(tl.int64)[:, None] * width + column[None, :]
    x = tl.load(x_ptr + offsets).to(tl.float32)
    most = tl.maximum(tl.max(tl.abs(x), axis=1), 1e-30)
    tl.store(along_ptr + tl.program_id(1) * rows + row, most / LARGEST)
    tl.store(values_ptr + offsets, (x * (LARGEST / most)[:, None]).to(values_ptr.dtype.element_ty))
    most = tl.maximum(tl.max(tl.abs(x), axis=0), 1e-30)
    tl.store(across_ptr + tl.program_id(0) * width + column, most / LARGEST)
    turned = tl.trans((x * (LARGEST / most)[None, :]).to(turned_ptr.dtype.element_ty))
    tl.store(turned_ptr + column.to(tl.int64)[:, None] * rows + row[None, :], turned)
