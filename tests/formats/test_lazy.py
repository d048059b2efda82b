"""Lazy tensors equal what torch cuts and joins, read as a whole and at any rows."""

from __future__ import annotations

import pytest
import torch

from megatron_patch.formats.lazy import Beside, Cast, FileTensor, LazyTensor, MeanRow, Rows, Stacked, Strided, load

WHOLE = torch.arange(42, dtype=torch.float32).view(7, 6)


def in_file(path, tensor: torch.Tensor, before: int = 12) -> FileTensor:
    """`tensor` written to a file behind other bytes, as a lazy tensor."""
    path.write_bytes(b"\xff" * before + tensor.contiguous().numpy().tobytes())
    return FileTensor(path, "w", before, tuple(tensor.shape), tensor.dtype)


def cases(folder) -> dict[str, tuple[LazyTensor, torch.Tensor]]:
    """Name → (a lazy tensor, the same made by torch)."""
    base = in_file(folder / "whole", WHOLE)
    # From row 0, column 2 on; rows of four are six apart.
    storage = FileTensor(base.path, "w", base.offset + 2 * 4, (40,), torch.float32)
    return {
        "file": (base, WHOLE),
        "rows": (Rows(base, 2, 6), WHOLE[2:6]),
        "rows of rows": (Rows(Rows(base, 1, 7), 1, 5), WHOLE[2:6]),
        "strided": (Strided(storage, (7, 4), 6), WHOLE[:, 2:]),
        "stacked": (Stacked((Rows(base, 3, 7), Rows(base, 0, 2), base)), torch.cat([WHOLE[3:], WHOLE[:2], WHOLE])),
        "beside": (Beside((Strided(storage, (7, 4), 6), base)), torch.cat([WHOLE[:, 2:], WHOLE], dim=1)),
        "cast": (Cast(base, torch.bfloat16, "w"), WHOLE.bfloat16()),
        "mean": (MeanRow(base, 3), WHOLE.mean(0).expand(3, 6)),
    }


@pytest.mark.parametrize("name", ["file", "rows", "rows of rows", "strided", "stacked", "beside", "cast", "mean"])
def test_any_rows_are_torch_s(tmp_path, name):
    lazy, wanted = cases(tmp_path)[name]
    assert tuple(lazy.shape) == tuple(wanted.shape) and lazy.dtype == wanted.dtype
    assert torch.equal(load(lazy), wanted)
    for first in range(lazy.shape[0]):
        for last in range(first + 1, lazy.shape[0] + 1):
            out = torch.empty(last - first, *lazy.shape[1:], dtype=lazy.dtype)
            lazy.read(first, last, out)
            assert torch.equal(out, wanted[first:last]), (first, last)
