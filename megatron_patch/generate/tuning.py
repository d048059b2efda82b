"""Which kernels a decoding step is made of: a few candidates for each product and for attention, measured once.

A candidate runs over all layers as a CUDA graph, as it will: one layer's weights alone would stay in the cache of the
GPU, and the host would be slower than a kernel.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from megatron_patch.generate.decoder import Decoder
from megatron_patch.generate.layer_products import DOWN, GATE_UP, OUTPUT, PROJECTION, QKV, Activations, LayerProducts
from megatron_patch.generate.recording import recorded
from megatron_patch.kernels._dispatch import use_triton
from megatron_patch.kernels.decode_attention import Reading, decode_attention
from megatron_patch.kernels.thin_products import FEW_ROWS, FEW_ROWS_SPLIT, MOST_ROWS, ONE_ROW, Tiling

T = TypeVar("T")

# By bytes of a number. Tensor cores have no float32: its products are unrolled, and large tiles compile for minutes.
_ONE_ROW = {
    2: (
        Tiling(16, 256),
        Tiling(8, 512),
        Tiling(8, 256),
        Tiling(4, 1024),
        Tiling(16, 512, warps=8),
        Tiling(32, 256, warps=8),
        Tiling(8, 1024, warps=8),
    ),
    4: (Tiling(16, 128), Tiling(4, 512)),
}
_FEW_ROWS: dict[int, tuple[Tiling, ...]] = {
    2: (Tiling(64, 128), Tiling(64, 256, stages=3), Tiling(128, 128), Tiling(128, 64, stages=5)),
    4: (),
}
_READINGS = {
    2: (Reading(), Reading(dot=False), Reading(dot=False, tile=32), Reading(tile=128, programs=2), Reading(programs=8)),
    4: (Reading(tile=16), Reading(dot=False, tile=32)),
}
_REPLAYS = 3
# Of a model's shape and a step's: tilings, None where a library computes all products; and how keys are read.
_measured: dict[tuple[Any, ...], tuple[dict[str, Tiling] | None, Reading]] = {}


@dataclass(frozen=True)
class StepChoice:
    """What a step of so many rows runs."""

    products: LayerProducts
    reading: Reading


def choose_step(decoder: Decoder, rows: int, rotation: tuple[torch.Tensor, torch.Tensor], width: int) -> StepChoice:
    """The fastest kernels for `rows` rows; on a GPU they are measured now, and the host waits.

    Once measured they are those of every engine of this process over a model like this one: others may round otherwise,
    and the same seed would draw other tokens.

    Args:
        rotation: as `Decoder.decode` takes it.
        width: blocks of the longest sequence.
    """
    weight, ranks = decoder.weights.layers[0].qkv, decoder.ranks
    library = decoder.library_products()
    if not use_triton(None, weight):
        return StepChoice(library, Reading())
    # Ranks that share weights add their parts before the residual, and a stage's last sum has no norm behind it.
    by_library = ranks.replica_group is not None or rows > MOST_ROWS
    if weight.is_cuda:
        shape = (decoder.config, decoder.rows, decoder.heads, len(decoder.weights.layers), decoder.dtype, weight.device)
        if (key := (*shape, rows, width, by_library)) not in _measured:
            measurement = _Measurement(decoder, rows, rotation, width)
            _measured[key] = (None if by_library else measurement.products(), measurement.reading())
        tilings, reading = _measured[key]
        if tilings is None:
            return StepChoice(library, reading)
        return StepChoice(LayerProducts(ranks, library.epsilon, tilings, one_row=rows == 1), reading)
    if by_library:
        return StepChoice(library, Reading())
    few = {QKV: FEW_ROWS, GATE_UP: FEW_ROWS, OUTPUT: FEW_ROWS, PROJECTION: FEW_ROWS_SPLIT, DOWN: FEW_ROWS_SPLIT}
    tilings = dict.fromkeys(few, ONE_ROW) if rows == 1 else few
    return StepChoice(LayerProducts(ranks, library.epsilon, tilings, one_row=rows == 1), Reading())


class _Measurement:
    """The candidates of a step of `rows` rows on a GPU."""

    def __init__(self, decoder: Decoder, rows: int, rotation: tuple[torch.Tensor, torch.Tensor], width: int) -> None:
        self._decoder, self._rows, self._rotation, self._width = decoder, rows, rotation, width
        device = decoder.ranks.device
        self._overlap = torch.cuda.get_device_capability(device) >= (9, 0)
        self._bytes = decoder.dtype.itemsize
        self._draw = lambda size: torch.randn(rows, size, dtype=decoder.dtype, device=device)

    def products(self) -> dict[str, Tiling]:
        """The fastest for each product. Where no kernel of few rows is faster than the library, that one stays."""
        layers, eps = self._decoder.weights.layers, self._decoder.config.norm_epsilon
        output = self._decoder.weights.output
        assert output is not None, "one process has the whole model"
        found: dict[str, Tiling] = {}
        for name in (QKV, PROJECTION, GATE_UP, DOWN, OUTPUT):
            weights: list[torch.Tensor] = [output] if name == OUTPUT else [getattr(layer, name) for layer in layers]
            best = fastest(self._candidates(name), functools.partial(self._runs, name, weights, eps))
            if best is not None:
                found[name] = best
        return found

    def _candidates(self, name: str) -> Iterable[Tiling | None]:
        if self._rows == 1:
            return [tiling._replace(overlap=self._overlap) for tiling in _ONE_ROW[self._bytes]]
        tilings = _FEW_ROWS[self._bytes]
        halves = [tiling._replace(rows=tiling.rows // 2) for tiling in tilings] if name == GATE_UP else list(tilings)
        if name in (PROJECTION, DOWN):
            halves = [tiling._replace(splits=splits) for tiling in halves[:3] for splits in (4, 8 if tiling.rows > 64 else 2)]
        return [None, *(tiling._replace(overlap=self._overlap) for tiling in halves)]

    def _runs(self, name: str, weights: list[torch.Tensor], eps: float, tiling: Tiling | None) -> Callable[[], object]:
        """One product of every layer, with what surrounds it."""
        products = LayerProducts(self._decoder.ranks, eps, {} if tiling is None else {name: tiling}, one_row=self._rows == 1)
        x, hidden = self._draw(weights[0].shape[1]), self._draw(weights[0].shape[0])
        norm = self._decoder.weights.layers[0].input_norm
        given = Activations(x, norm, None if self._rows == 1 else x)
        if name in (PROJECTION, DOWN):
            return lambda: [products.add(name, x, weight, hidden, norm) for weight in weights]
        dtype = torch.float32 if name == OUTPUT else None
        return lambda: [products.apply(name, given, weight, gated=name == GATE_UP, out_dtype=dtype) for weight in weights]

    def reading(self) -> Reading:
        """The fastest way to read keys, with sequences half as long as they may be. No block of theirs is written."""
        decoder, cache, device = self._decoder, self._decoder.cache, self._decoder.ranks.device
        blocks, (queries, groups) = cache.keys.shape[1], (decoder.heads // decoder.groups, decoder.groups)
        packed = self._draw((queries + 2) * groups * decoder.config.kv_channels)
        place = self._width // 2
        table = torch.arange(self._rows * self._width, dtype=torch.int32, device=device).view(self._rows, -1) % blocks
        table[:, place] = 0  # the new token's block: the one that is nobody's
        positions = torch.full((self._rows,), place * cache.keys.shape[3], dtype=torch.int32, device=device)

        def runs(reading: Reading) -> Callable[[], object]:
            return lambda: [
                decode_attention(packed, k, v, table, positions, *self._rotation, scale=decoder.scale, reading=reading)
                for k, v in zip(cache.keys, cache.values)
            ]

        candidates = [reading for reading in _READINGS[self._bytes] if reading.dot or queries == 1]
        return fastest([reading._replace(overlap=self._overlap) for reading in candidates], runs)


def fastest(candidates: Iterable[T], runs: Callable[[T], Callable[[], object]]) -> T:
    """The candidate that takes the least time; one that asks for more shared memory than there is, is none."""
    from triton.runtime.errors import OutOfResources

    times: dict[T, float] = {}
    for candidate in candidates:
        try:
            times[candidate] = graph_milliseconds(runs(candidate))
        except OutOfResources:
            continue
    return min(times, key=times.__getitem__)


def graph_milliseconds(run: Callable[[], object], replays: int = _REPLAYS) -> float:
    """Milliseconds of `run` as a CUDA graph, of which `replays` follow each other."""
    graph, _ = recorded(run, torch.device("cuda", torch.cuda.current_device()))
    graph.replay()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(replays):
        graph.replay()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / replays
