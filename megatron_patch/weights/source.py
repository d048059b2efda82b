"""Opening any checkpoint by the reader of its kind, and fitting it: vocabulary, dtype, shapes, a rank's share."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from megatron_patch.config import PER_KV_HEAD
from megatron_patch.errors import UserError
from megatron_patch.folders.hugging_face_folder import is_hf_folder, is_meta_folder
from megatron_patch.folders.layout import resolve_checkpoint
from megatron_patch.formats.checksums import finish_together
from megatron_patch.formats.dtypes import of_name
from megatron_patch.formats.lazy import Cast, LazyTensor, MeanRow, Rows, nbytes, pieces, records_of, stack
from megatron_patch.llama.model_config import LlamaConfig
from megatron_patch.weights.hugging_face import open_hf
from megatron_patch.weights.megatron_2023 import open_2023
from megatron_patch.weights.meta import open_meta
from megatron_patch.weights.native import open_native
from megatron_patch.weights.table import (
    BY_KEY,
    DOWN,
    EMBEDDING,
    GATE_UP,
    OUTPUT_LAYER,
    PROJECTION,
    QKV,
    Place,
    Source,
    megatron_shape,
    places,
)

_THREADS = 4  # that copy one tensor
_LARGE = 8 << 20  # bytes from which on a tensor is worth them


def open_source(path: str | Path, fallback: LlamaConfig | None = None, gqa_layout: str = PER_KV_HEAD) -> Source:
    """Look at every file of a checkpoint and find its tensors; their bytes are not read.

    Args:
        path: a Hugging Face or Meta folder, a checkpoint's root, or one iteration's folder.
        fallback: the model that the user named. What the files do not tell is taken from it: of a checkpoint of 2023
            without config.json the epsilon, rotary base and position limit; of Meta's files the position limit; of a
            torch_dist folder without model.json and config.json everything.
        gqa_layout: the order of QKV rows in a checkpoint of 2023 that does not tell it, `per-kv-head` or `all-q-first`.

    Raises:
        UserError: nothing readable is there, or a file is missing, truncated or holds what it should not.
    """
    path = Path(path)
    if is_meta_folder(path):
        return open_meta(path, fallback)
    if is_hf_folder(path):
        return open_hf(path)
    location = resolve_checkpoint(path)
    if location.kind == "native":
        return open_native(location, fallback)
    return open_2023(location, fallback, gqa_layout)


def with_extra_vocabulary(source: Source, count: int) -> Source:
    """`source` with `count` rows appended to embedding and output layer, each the mean of the old rows."""
    if count == 0:
        return source

    def lookup(place: Place) -> tuple[LazyTensor, ...]:
        found = source.lookup(place)
        return (stack([found[0], MeanRow(found[0], count)]),) if place.is_vocabulary else found

    return replace(source, lookup=lookup, extra_vocab_size=source.extra_vocab_size + count)


def with_vocabulary_rows(source: Source) -> Source:
    """`source` without the padding rows of embedding and output layer, and a note that says so.

    Padding is what lies beyond vocabulary and extra rows.
    """
    rows = source.config.vocab_size + source.extra_vocab_size
    found = source.lookup(Place(BY_KEY[EMBEDDING], None))[0].shape[0]
    if found <= rows:
        return source

    def lookup(place: Place) -> tuple[LazyTensor, ...]:
        tensors = source.lookup(place)
        return (Rows(tensors[0], 0, rows),) if place.is_vocabulary else tensors

    note = f"{found - rows} rows of vocabulary padding beyond {rows} are left out."
    return replace(source, lookup=lookup, notes=(*source.notes, note))


def with_dtype(source: Source, dtype: str) -> Source:
    """`source` with every tensor in `dtype`: bfloat16, float16 or float32."""
    wanted = of_name(dtype).torch_dtype

    def lookup(place: Place) -> tuple[LazyTensor, ...]:
        found = source.lookup(place)
        return tuple(part if part.dtype == wanted else Cast(part, wanted, str(place)) for part in found)

    return replace(source, lookup=lookup, dtype=dtype)


def check_shapes(source: Source) -> None:
    """Look each tensor up once, and compare its shape and dtype with what config.json makes them.

    Raises:
        UserError: the first that differs, with its name and folder.
    """
    wanted = of_name(source.dtype).torch_dtype
    for place in places(source.config):
        tensor = source.megatron(place)
        expected = megatron_shape(source.config, place.entry.key, source.extra_vocab_size)
        if tuple(tensor.shape) != expected:
            raise UserError(
                f"{source.root}: {place} has shape {list(tensor.shape)}, "
                f"and config.json or the recorded arguments make it {list(expected)}."
            )
        if tensor.dtype != wanted:
            raise UserError(
                f"{source.root}: {place} is {tensor.dtype}, and the others are {wanted}; give --dtype to make them one."
            )


def split_axis(place: Place) -> int | None:
    """The axis along which tensor parallelism cuts a weight; None: every rank has all of it."""
    if place.entry.key in (PROJECTION, DOWN):
        return 1
    return 0 if place.entry.key in (EMBEDDING, OUTPUT_LAYER, QKV, GATE_UP) else None


def share_of_rows(place: Place, tensor: LazyTensor, rank: int, size: int) -> LazyTensor:
    """Rank's rows [R / size, …] of `tensor` [R, …]; of gate and up its rows of each, one after the other."""
    parts = 2 if place.entry.rule == "gate_up" else 1
    height = tensor.shape[0] // parts
    share = height // size
    return stack([Rows(tensor, part * height + rank * share, part * height + (rank + 1) * share) for part in range(parts)])


def copy_rows(where: str, place: Place, tensor: LazyTensor, out: torch.Tensor, column_rank: int = 0) -> None:
    """Copy the rows of `tensor` [R, C] or [R] into `out`, cast to its dtype, a piece at a time.

    If `out` has fewer columns, it gets those of the tensor-parallel rank `column_rank`.

    Args:
        where: the checkpoint, for the error.

    Raises:
        UserError: the shapes do not fit, or the tensor is damaged.
    """
    columns = slice(None)
    if out.dim() == 2:
        columns = slice(column_rank * out.shape[1], (column_rank + 1) * out.shape[1])
    if tensor.shape[0] != out.shape[0] or tensor.shape[1:] and tensor.shape[1] % out.shape[1]:
        raise UserError(f"{where}: {place} has shape {list(tensor.shape)}, of which {list(out.shape)} is no share.")
    out = out.detach()
    rows = out.shape[0]
    # Python lets go of its lock while it reads, sums and copies, so several threads take a large tensor's bands.
    count = min(_THREADS, rows) if nbytes(tensor) > _LARGE else 1
    bands = [(rows * part // count, rows * (part + 1) // count) for part in range(count)]
    stream = torch.cuda.current_stream(out.device) if out.is_cuda else None

    def copy_band(first: int, last: int) -> None:
        # A thread has a current stream of its own, and gradients on; the caller's are meant.
        with torch.no_grad(), torch.cuda.stream(stream) if stream is not None else contextlib.nullcontext():
            for start, stop, piece in pieces(Rows(tensor, first, last)):
                out[first + start : first + stop].copy_(piece[:, columns] if out.dim() == 2 else piece)

    if count == 1:
        copy_band(0, rows)
        return
    with ThreadPoolExecutor(count, thread_name_prefix="read") as pool:
        for copied in [pool.submit(copy_band, *band) for band in bands]:
            copied.result()


def check_rest(source: Source, rank: int = 0, exchange: Callable[[Any], list[Any]] = lambda one: [one]) -> None:
    """Compare with their sums the tensors of which a part was read: of rows that are left out, or by other processes.

    Tensors that were read whole have been compared already; safetensors have no sums.

    Args:
        rank: this process's number among those that read.
        exchange: gives the objects of all processes, in the order of their ranks, for this one's; all call it.

    Raises:
        UserError: a tensor is damaged. Every process raises it.
    """
    tensors = (tensor for place in places(source.config) for tensor in source.lookup(place))
    finish_together((record for tensor in tensors for record in records_of(tensor)), rank, exchange)
