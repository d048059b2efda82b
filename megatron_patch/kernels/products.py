"""Large matrix products with the algorithm that was measured to be the fastest, where torch takes cuBLAS's first guess.

The guess is far off where a product adds to float32: LLaMA-2 7B's weight gradients at 2048 tokens take a sixth less time
with another tile. Nor is the winner of a short race the one to train with. Products that go on for long bring an H200 to its
power limit, which lowers its clock by a quarter; from then on what a product costs is its energy, and the algorithm of the
fewest clock cycles may be among the hungriest. The clock follows the power with a time constant of about 40 ms (fitted to
blocks of products that alternate), so an algorithm's own cost shows only after a tenth of a second of nothing else: a race
at whatever clock rules out what cannot win, and the rest run for that long.

Candidates differ in tiles and in the order of tiles, not in the order in which an element's products are summed, so the
choice may differ between processes and change no digit; tests/kernels/test_products.py asserts that on GPUs.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch

from ._cublaslt import ALIGNMENT, Product, Shape, library
from ._dispatch import prefers_torch

# Multiply-adds below which a product is too short for its algorithm to matter.
LARGE = 1 << 30
_HEAT = 80.0  # milliseconds of products until a GPU that was idle is at its power limit and its clock has fallen
_ROUNDS, _TURNS = 2, 5  # short measurements of each candidate, products in each
# Those within this factor of the fewest cycles, and at most so many, are measured for long; with all a start would take too long.
_CLOSE, _FINALISTS = 1.15, 6
_SETTLE, _LONG = 100.0, 60.0  # milliseconds of each: until the clock is the algorithm's own, and measured
_LAST, _SURE = 3, 1.02  # of the finalists these are measured again: one measurement scatters by some per cent

_chosen: dict[tuple[Shape, torch.device], tuple[Product, ctypes.Array] | None] = {}
_remembered: dict[Shape, Choice] = {}
_guessing = False
_noted: dict[Shape, None] | None = None  # in their order


class Choice(NamedTuple):
    """Of a shape's candidates, in cuBLASLt's order: which one, and of how many."""

    place: int
    candidates: int


def choices() -> dict[Shape, Choice]:
    """What this process has measured or been told, for processes on GPUs of the same kind with the same libraries."""
    made = {}
    for (shape, _), chosen in _chosen.items():
        if chosen is not None:
            product, algorithm = chosen
            made[shape] = Choice(product.algorithms.index(algorithm), len(product.algorithms))
    return _remembered | made


def remember(known: Mapping[Shape, Choice]) -> None:
    """Products of these shapes are not measured, as long as cuBLASLt offers as many candidates as it did."""
    _remembered.update(known)


@contextlib.contextmanager
def first_guess() -> Iterator[None]:
    """Inside, products of shapes that are not tuned yet run through torch, untuned.

    For passes that run once: a rehearsal, an evaluation.
    """
    global _guessing
    before, _guessing = _guessing, True
    try:
        yield
    finally:
        _guessing = before


@contextlib.contextmanager
def noting() -> Iterator[dict[Shape, None]]:
    """Inside, products of shapes that are not tuned yet run through torch; afterwards what is yielded has these shapes.

    For a first pass, after which each of several processes can `measure` some of them.
    """
    global _noted
    _noted = noted = {}
    try:
        yield noted
    finally:
        _noted = None


def measure(shape: Shape, device: torch.device) -> None:
    """Find the fastest algorithm on random numbers of this shape; `choices` then has it. Waits for the device."""
    if (shape, device) in _chosen:
        return
    draw = functools.partial(torch.randn, dtype=shape.dtype, device=device)
    a = draw(shape.k, shape.n).t() if shape.transpose_b else draw(shape.n, shape.k)
    b = draw(shape.m, shape.k).t() if shape.transpose_a else draw(shape.k, shape.m)
    out = torch.zeros(shape.n, shape.m, dtype=shape.out_dtype, device=device)
    assert shape_of(a, b, out) == shape
    product = Product(shape, device)
    algorithm = _fastest(product, a, b, out)
    _chosen[shape, device] = None if algorithm is None else (product, algorithm)


def matmul(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor, *, add: bool = False) -> torch.Tensor:
    """out [M, N] = a [M, K] · b [K, N], or += with add; sums are float32 and rounded once, to out's dtype.

    a and b: contiguous or transposed views of contiguous tensors, of one dtype; out: contiguous, of that dtype or float32.
    The first large product of a shape on a GPU tries the candidates, and waits for the device; inside a CUDA graph's capture
    nothing is tried. ValueError if the shapes do not agree.
    """
    if a.shape[1] != b.shape[0] or tuple(out.shape) != (a.shape[0], b.shape[1]):
        raise ValueError(f"out is {list(out.shape)}; a {list(a.shape)} · b {list(b.shape)} does not fit it.")
    choice = _choice(a, b, out, add) if is_tunable(a, b, out) else None
    if choice is None:
        return _torch_matmul(a, b, out, add)
    product, algorithm = choice
    product.launch(algorithm, *_addresses(a, b, out), 1.0 if add else 0.0, _stream(out))
    return out


def is_tunable(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor) -> bool:
    """Whether cuBLASLt is asked: a large 16-bit product on a GPU, of aligned matrices without gaps."""
    return (
        out.is_cuda
        and not prefers_torch()
        and a.dtype == b.dtype
        and a.dtype in (torch.bfloat16, torch.float16)
        and out.dtype in (a.dtype, torch.float32)
        and a.shape[0] * a.shape[1] * b.shape[1] >= LARGE
        and out.is_contiguous()
        and all(t.is_contiguous() or t.t().is_contiguous() for t in (a, b))
        and all(size % 8 == 0 for size in (*a.shape, *b.shape))
        and all(address % ALIGNMENT == 0 for address in _addresses(a, b, out))
        and library() is not None
    )


def _addresses(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor) -> tuple[int, int, int]:
    """In cuBLAS's order: column-major, outᵀ = bᵀ · aᵀ."""
    return b.data_ptr(), a.data_ptr(), out.data_ptr()


def _stream(tensor: torch.Tensor) -> int:
    return torch.cuda.current_stream(tensor.device).cuda_stream


def shape_of(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor) -> Shape:
    """The product as column-major cuBLAS sees it: a contiguous row-major matrix is its own transpose there."""
    rows, columns = out.shape
    return Shape(columns, rows, a.shape[1], not b.is_contiguous(), not a.is_contiguous(), a.dtype, out.dtype)


def _choice(a, b, out, add) -> tuple[Product, ctypes.Array] | None:
    key = shape_of(a, b, out), out.device
    if key not in _chosen:
        measures = not _guessing and _noted is None and not torch.cuda.is_current_stream_capturing()
        if not measures and key[0] not in _remembered:
            if _noted is not None and not _guessing:
                _noted[key[0]] = None
            return None
        product = Product(*key)
        algorithm = _known(product, key[0])
        if algorithm is None and not measures:
            return None
        if algorithm is None:
            algorithm = _fastest(product, a, b, torch.empty_like(out) if add else out)
        _chosen[key] = (product, algorithm) if algorithm is not None else None
    return _chosen[key]


def _known(product: Product, shape: Shape) -> ctypes.Array | None:
    choice = _remembered.get(shape)
    if choice is None or choice.candidates != len(product.algorithms) or not 0 <= choice.place < choice.candidates:
        return None
    return product.algorithms[choice.place]


def _fastest(product: Product, a: torch.Tensor, b: torch.Tensor, scratch: torch.Tensor) -> ctypes.Array | None:
    """The algorithm that takes the least time when it runs for long; writes to `scratch`. A float32 result is measured
    adding, the usual case."""
    if len(product.algorithms) < 2:
        return next(iter(product.algorithms), None)
    beta = 1.0 if scratch.dtype == torch.float32 else 0.0
    run = functools.partial(_time, product, _addresses(a, b, scratch), beta, _stream(scratch))
    _heat(run, product.algorithms[0])
    short = _race(run, product.algorithms)
    finalists = _ahead(dict(enumerate(short)), _FINALISTS, _CLOSE)
    long = {place: _for_long(run, product.algorithms[place], short[place]) for place in finalists}
    last = _ahead(long, _LAST, _SURE)
    if len(last) > 1:
        long = {place: long[place] + _for_long(run, product.algorithms[place], short[place]) for place in last}
    return product.algorithms[min(long, key=long.__getitem__)]


def _ahead(spent: dict[int, float], most: int, factor: float) -> list[int]:
    """At most so many places, best first, that have spent no more than the best times the factor."""
    ranked = sorted(spent, key=spent.__getitem__)
    return [place for place in ranked[:most] if spent[place] <= factor * spent[ranked[0]]]


def _heat(run: Callable[[int, ctypes.Array], float], algorithm: ctypes.Array) -> None:
    run(math.ceil(_HEAT / _short(run, algorithm)), algorithm)


def _race(run: Callable[[int, ctypes.Array], float], algorithms: Sequence[ctypes.Array]) -> list[float]:
    """Milliseconds of each, briefly, first to last and last to first, so that a drift of the clock favours none."""
    spent = [0.0] * len(algorithms)
    for turn in range(_ROUNDS):
        places = range(len(algorithms))
        for place in places if turn % 2 == 0 else reversed(places):
            spent[place] += _short(run, algorithms[place]) / _ROUNDS
    return spent


def _for_long(run: Callable[[int, ctypes.Array], float], algorithm: ctypes.Array, short: float) -> float:
    run(math.ceil(_SETTLE / short), algorithm)
    turns = math.ceil(_LONG / short)
    return run(turns, algorithm) / turns


def _short(run: Callable[[int, ctypes.Array], float], algorithm: ctypes.Array) -> float:
    run(1, algorithm)
    return run(_TURNS, algorithm) / _TURNS


def _time(
    product: Product, addresses: tuple[int, int, int], beta: float, stream: int, turns: int, algorithm: ctypes.Array
) -> float:
    """Milliseconds of `turns` products in a row."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(turns):
        product.launch(algorithm, *addresses, beta, stream)
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def _torch_matmul(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor, add: bool) -> torch.Tensor:
    """The same through torch, which on CPUs cannot keep a 16-bit product's sums: its factors are widened first."""
    if a.dtype == out.dtype:
        return torch.addmm(out, a, b, out=out) if add else torch.mm(a, b, out=out)
    if out.is_cuda:
        kind = out.dtype
        return torch.addmm(out, a, b, out_dtype=kind, out=out) if add else torch.mm(a, b, out_dtype=kind, out=out)
    return torch.addmm(out, a.to(out.dtype), b.to(out.dtype), beta=1.0 if add else 0.0, out=out)
