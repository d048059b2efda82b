"""Any checkpoint's weights by name, lazily: a Hugging Face folder, Meta's files, a native checkpoint, or one of 2023."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from megatron_patch.errors import UserError
from megatron_patch.formats.lazy import Cast, LazyTensor, MeanRow, Rows, stack
from megatron_patch.llama.model_config import LlamaConfig
from megatron_patch.weights.table import BY_KEY, EMBEDDING, OUTPUT_LAYER, Place, join, megatron_shape, places, split

TORCH_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True)
class Source:
    """A checkpoint's weights. Tensors are read when asked for; nothing is kept."""

    kind: str  # "hf", "meta", "native" or "megatron_2023"
    root: Path  # the folder with config.json and the tokenizer's files
    config: LlamaConfig
    extra_vocab_size: int
    dtype: str  # of the weights: bfloat16, float16 or float32
    lookup: Callable[[Place], tuple[LazyTensor, ...]]
    is_hf: bool  # whether `lookup` gives the Hugging Face tensors of a place, or the one Megatron tensor
    notes: tuple[str, ...] = ()  # what the user should know, one sentence each

    def megatron(self, place: Place) -> LazyTensor:
        """The Megatron tensor of `place`."""
        found = self.lookup(place)
        return join(self.config, place.entry.rule, found) if self.is_hf else found[0]

    def hf(self, place: Place) -> tuple[LazyTensor, ...]:
        """The Hugging Face tensors of `place`, in the table's order."""
        found = self.lookup(place)
        return found if self.is_hf else split(self.config, place.entry.rule, found[0])


def with_extra_vocabulary(source: Source, count: int) -> Source:
    """`source` with `count` rows appended to embedding and output layer, each the mean of the old rows."""
    if count == 0:
        return source

    def lookup(place: Place) -> tuple[LazyTensor, ...]:
        found = source.lookup(place)
        if place.entry.key not in (EMBEDDING, OUTPUT_LAYER):
            return found
        return (stack([found[0], MeanRow(found[0], count)]),)

    return replace(source, lookup=lookup, extra_vocab_size=source.extra_vocab_size + count)


def with_vocabulary_rows(source: Source) -> Source:
    """`source` without the rows of embedding and output layer beyond vocabulary and extra rows, and a note of it."""
    rows = source.config.vocab_size + source.extra_vocab_size
    found = source.lookup(Place(BY_KEY[EMBEDDING], None))[0].shape[0]
    if found <= rows:
        return source

    def lookup(place: Place) -> tuple[LazyTensor, ...]:
        tensors = source.lookup(place)
        if place.entry.key not in (EMBEDDING, OUTPUT_LAYER):
            return tensors
        return (Rows(tensors[0], 0, rows),)

    note = f"{found - rows} rows of vocabulary padding beyond {rows} are left out."
    return replace(source, lookup=lookup, notes=(*source.notes, note))


def with_dtype(source: Source, dtype: str) -> Source:
    """`source` with every tensor in `dtype`."""
    wanted = TORCH_DTYPES[dtype]

    def lookup(place: Place) -> tuple[LazyTensor, ...]:
        found = source.lookup(place)
        return tuple(part if part.dtype == wanted else Cast(part, wanted, str(place)) for part in found)

    return replace(source, lookup=lookup, dtype=dtype)


def check_shapes(source: Source) -> None:
    """Look each tensor up once and compare its shape and dtype with what config.json makes them.

    Raises:
        UserError: the first that differs, with its name and file.
    """
    wanted = TORCH_DTYPES[source.dtype]
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
