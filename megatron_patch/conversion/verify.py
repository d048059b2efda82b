"""Reading both sides of a conversion again, and comparing every tensor a piece at a time."""

from __future__ import annotations

from pathlib import Path

import torch

from megatron_patch.errors import UserError
from megatron_patch.formats.lazy import LazyTensor, nbytes, pieces
from megatron_patch.formats.progress import Progress
from megatron_patch.weights.source import check_rest, open_source
from megatron_patch.weights.table import Source, places


def verify(source: Source, folder: Path, total: int) -> int:
    """Compare every Hugging Face tensor of `source` with that of the written `folder`, bit for bit.

    Args:
        total: bytes of all tensors, for the progress line.

    Returns:
        The number of tensors compared.

    Raises:
        UserError: a tensor differs, or holds a NaN or an infinity; named with its file or folder.
    """
    written = open_source(folder)
    count = 0
    with Progress("verifying", total) as progress:
        for place in places(source.config):
            for name, expected, got in zip(place.hf_names, source.hf(place), written.hf(place)):
                _compare(source, folder, name, expected, got)
                progress.add(nbytes(expected))
                count += 1
    check_rest(written)
    return count


def _compare(source: Source, folder: Path, name: str, expected: LazyTensor, got: LazyTensor) -> None:
    """Raise where the two differ in shape, dtype or a bit, or hold what is no finite number."""
    if tuple(expected.shape) != tuple(got.shape) or expected.dtype != got.dtype:
        raise UserError(f"{folder}: {name} is {got.dtype} {list(got.shape)}; it must be {expected.dtype} {list(expected.shape)}.")
    for (first, _, want), (_, _, have) in zip(pieces(expected), pieces(got)):
        if not bool(torch.isfinite(want).all()):
            row = first + int((~torch.isfinite(want)).flatten(1).any(1).nonzero()[0]) if want.dim() > 1 else first
            raise UserError(f"{_where(expected, source)}: tensor {name} holds a NaN or an infinity, in row {row} first.")
        # As bytes: equal numbers may have other bits, −0.0 and 0.0.
        if not torch.equal(want.view(-1).view(torch.uint8), have.view(-1).view(torch.uint8)):
            raise UserError(f"{folder}: tensor {name} differs from the source's from row {first} on; convert again.")


def _where(tensor: LazyTensor, source: Source) -> str:
    """The first file that `tensor` is made of; the source's folder where it is made of none."""
    inner = tensor
    while not hasattr(inner, "path"):
        parts = getattr(inner, "parts", None)
        following = parts[0] if parts else getattr(inner, "base", None) or getattr(inner, "storage", None)
        if following is None:
            return str(source.root)
        inner = following
    return str(inner.path)
