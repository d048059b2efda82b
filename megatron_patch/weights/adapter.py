"""A source whose linear layers have PEFT's adapters merged in: W + scale · B·A, and the modules that were kept whole.

Nothing is merged before it is read, so memory holds a piece of a weight and the thin matrices of a few layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from megatron_patch.errors import UserError
from megatron_patch.formats.dtypes import of_name
from megatron_patch.formats.lazy import Cast, LazyTensor
from megatron_patch.formats.low_rank import LowRankSum, ThinMatrices
from megatron_patch.formats.peft_adapter import EMBEDDING, OUTPUT_LAYER, TARGETS, LoraConfig
from megatron_patch.formats.peft_tensors import Pair, read_adapter
from megatron_patch.weights.source import with_vocabulary_rows
from megatron_patch.weights.table import Place, Source, hf_shapes, listed, natural, places

_BASE_LAYER = ".base_layer"  # what PEFT puts behind a module that has an adapter and is kept whole as well


@dataclass(frozen=True)
class _Changes:
    """What an adapter does to weights, by Hugging Face's names of these."""

    config: LoraConfig
    pairs: Mapping[str, Pair]
    whole: Mapping[str, LazyTensor]


def with_adapter(base: Source, folder: Path, dtype: str | None = None) -> Source:
    """`base` with the adapter in `folder` merged in; its tensors have Hugging Face's names and shapes.

    Args:
        dtype: of all tensors, bfloat16, float16 or float32; None: base's. Each sum is computed in fp32 and rounded to
            it once.

    Raises:
        UserError: the adapter cannot be read, is not for this model, or its shapes do not fit.
    """
    base = with_vocabulary_rows(base)
    changes = _changes(folder)
    extra = _extra_rows(folder, base, changes)
    _check(folder, base, changes, extra)
    name = dtype or base.dtype
    wanted, thin = of_name(name).torch_dtype, ThinMatrices()

    def lookup(place: Place) -> tuple[LazyTensor, ...]:
        pairs = zip(place.hf_names, base.hf(place))
        return tuple(_merged(changes, name, tensor, wanted, thin) for name, tensor in pairs)

    notes = (*base.notes, _note(base, changes))
    return replace(base, lookup=lookup, is_hf=True, dtype=name, extra_vocab_size=extra, notes=notes, adapter=folder)


def _changes(folder: Path) -> _Changes:
    """The adapter in `folder`, by the names of weights."""
    adapter = read_adapter(folder)
    whole = {f"{module.removesuffix(_BASE_LAYER)}.weight": tensor for module, tensor in adapter.whole.items()}
    pairs = {f"{module}.weight": pair for module, pair in adapter.pairs.items()}
    # A module that is kept whole has no adapter, unless PEFT says that it is the base below one.
    both = sorted((name for name in whole if name in pairs and name.removesuffix(".weight") in adapter.whole), key=natural)
    if both:
        raise UserError(f"{folder} holds {listed(both)} both whole and as an adapter; save the adapter again.")
    return _Changes(adapter.config, pairs, whole)


def _extra_rows(folder: Path, base: Source, changes: _Changes) -> int:
    """Rows of embedding and output layer beyond config.json's: those of the adapter's own, where it has them.

    Raises:
        UserError: embedding and output layer would have other numbers of rows.
    """
    vocabulary = base.config.vocab_size
    rows = {}
    for module in (EMBEDDING, OUTPUT_LAYER):
        tensor = changes.whole.get(f"{module}.weight")
        rows[module] = vocabulary + base.extra_vocab_size if tensor is None else tensor.shape[0]
    if len(set(rows.values())) > 1 or rows[EMBEDDING] < vocabulary:
        said = ", ".join(f"{module} {count}" for module, count in rows.items())
        raise UserError(
            f"{folder} does not fit {base.root}: with it the vocabulary has other numbers of rows ({said}, and config.json "
            f"has {vocabulary}); name the base that the adapter was made over with --base."
        )
    return rows[EMBEDDING] - vocabulary


def _check(folder: Path, base: Source, changes: _Changes, extra: int) -> None:
    """Raise where the adapter has a module that the model has not, or of another shape."""
    shapes = {
        name: shape for place in places(base.config) for name, shape in zip(place.hf_names, hf_shapes(base.config, place, extra))
    }
    adapted = {name for name in shapes if name.split(".")[-2] in (*TARGETS, OUTPUT_LAYER)}
    unknown = sorted({*changes.pairs} - adapted | {*changes.whole} - {*shapes}, key=natural)
    if unknown:
        raise UserError(
            f"{folder} changes what the model in {base.root} does not have: {listed(unknown)}; it was made over another "
            "model: name that with --base."
        )
    for name, pair in changes.pairs.items():
        _check_shape(folder, base, name, (pair.b.shape[0], pair.a.shape[1]), shapes[name])
    for name, tensor in changes.whole.items():
        _check_shape(folder, base, name, tuple(tensor.shape), shapes[name])


def _check_shape(folder: Path, base: Source, name: str, got: tuple[int, ...], expected: tuple[int, ...]) -> None:
    if got != expected:
        raise UserError(
            f"{folder}: the adapter's {name} has shape {list(got)}, and the model in {base.root} has {list(expected)}; "
            "name the base that the adapter was made over with --base."
        )


def _merged(changes: _Changes, name: str, tensor: LazyTensor, dtype: torch.dtype, thin: ThinMatrices) -> LazyTensor:
    """The tensor `name` with the adapter merged in."""
    below = changes.whole.get(name, tensor)
    pair = changes.pairs.get(name)
    if pair is not None:
        return LowRankSum(below, pair.a, pair.b, changes.config.scale, dtype, name, thin)
    return below if below.dtype == dtype else Cast(below, dtype, name)


def _note(base: Source, changes: _Changes) -> str:
    """What was merged, for the user."""
    config = changes.config
    whole = f", and {listed(sorted(changes.whole, key=natural))} taken from it whole" if changes.whole else ""
    said = f"(rank {config.rank}, alpha {config.alpha:g})"
    return f"The adapter of {len(changes.pairs)} modules {said} was merged into {base.root}{whole}."
