"""Large matrix products, each with the algorithm that was measured to be the fastest for its shape.

torch takes cuBLAS's first guess. The guess is far off where a product adds to float32: LLaMA-2 7B's weight gradients at
2048 tokens take a sixth less time with another tile.

A short race does not find the best one either. Products that go on for long bring an H200 to its power limit, which
lowers its clock by a quarter. From then on a product costs what energy it takes, and the algorithm of the fewest clock
cycles may take the most. The clock follows the power with a time constant of about 40 ms (fitted to blocks of products
that alternate). So an algorithm's own cost shows only after some 70 ms of nothing else. Hence two rounds: a
short race, at whatever clock, rules out what cannot win; the finalists then run for that long each.

Processes may choose differently, and no digit changes. Candidates differ in tiles and in the order of tiles, and not in
the order in which an element's products are summed; tests/kernels/test_products.py asserts that on GPUs.
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

LARGE = 1 << 30  # multiply-adds; in a smaller product the algorithm does not matter
_HEAT = 80.0  # milliseconds of products, after which an idle GPU is at its power limit and its clock has fallen
_ROUNDS, _TURNS = 2, 5  # the race: measurements of each candidate, products in each
# Finalists: at most so many, and none that takes more than this factor of the shortest time in the race. To measure all
# candidates for long would lengthen a run's start too much.
_CLOSE, _FINALISTS = 1.15, 6
_SETTLE, _LONG = 70.0, 40.0  # milliseconds of a finalist: until the clock is its own, and measured after that
# The best so many within this factor are measured a second time: one measurement scatters by some per cent.
_LAST, _SURE = 3, 1.02

_chosen: dict[tuple[Shape, torch.device], tuple[Product, ctypes.Array] | None] = {}  # None: cuBLASLt has no candidate
_remembered: dict[Shape, Choice] = {}  # what `remember` was told
_guessing = False  # inside `first_guess`
_noted: dict[Shape, None] | None = None  # inside `noting`: the shapes, in their order


class Choice(NamedTuple):
    """The candidate of a shape that is the fastest: its place in cuBLASLt's list, and the length of that list."""

    place: int
    candidates: int


def choices() -> dict[Shape, Choice]:
    """All that this process has measured or been told. It holds for GPUs of one kind with the same libraries."""
    made = {}
    for (shape, _), chosen in _chosen.items():
        if chosen is not None:
            product, algorithm = chosen
            made[shape] = Choice(product.algorithms.index(algorithm), len(product.algorithms))
    return _remembered | made


def remember(known: Mapping[Shape, Choice]) -> None:
    """Take these choices without measuring. One is passed over if cuBLASLt's list has another length than it had."""
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
    noted: dict[Shape, None] = {}
    _noted = noted
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
    """out [M, N] = a [M, K] · b [K, N], or += with `add`. Sums are float32 and are rounded once, to out's dtype.

    The first large product of a shape on a GPU measures the candidates, and the host waits for the device. While a CUDA
    graph is recorded nothing may wait, so nothing is measured.

    Args:
        a, b: of one dtype, contiguous or transposed views of contiguous tensors.
        out: contiguous, of their dtype or float32. It is also returned.

    Raises:
        ValueError: the shapes do not agree.
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
    """Whether cuBLASLt computes a · b: a large 16-bit product on a GPU, of aligned matrices without gaps."""
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
    """The matrices in cuBLAS's order. It is column-major, and computes outᵀ = bᵀ · aᵀ."""
    return b.data_ptr(), a.data_ptr(), out.data_ptr()


def _stream(tensor: torch.Tensor) -> int:
    """The current CUDA stream's address, for ctypes."""
    return torch.cuda.current_stream(tensor.device).cuda_stream


def shape_of(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor) -> Shape:
    """The product as column-major cuBLAS sees it. There a contiguous row-major matrix is its transpose, contiguous."""
    rows, columns = out.shape
    return Shape(columns, rows, a.shape[1], not b.is_contiguous(), not a.is_contiguous(), a.dtype, out.dtype)


def _choice(a, b, out, add) -> tuple[Product, ctypes.Array] | None:
    """The product of this shape and its algorithm, measured now if need be; None: torch must compute it this time."""
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
            # Measuring writes its target many times, so a sum needs another one than `out`.
            algorithm = _fastest(product, a, b, torch.empty_like(out) if add else out)
        _chosen[key] = (product, algorithm) if algorithm is not None else None
    return _chosen[key]


def _known(product: Product, shape: Shape) -> ctypes.Array | None:
    """The algorithm that `remember` was told, if the list of candidates has the length that it had then."""
    choice = _remembered.get(shape)
    if choice is None or choice.candidates != len(product.algorithms) or not 0 <= choice.place < choice.candidates:
        return None
    return product.algorithms[choice.place]


def _fastest(product: Product, a: torch.Tensor, b: torch.Tensor, scratch: torch.Tensor) -> ctypes.Array | None:
    """The algorithm that takes the least time when it runs for long; None if cuBLASLt has no candidate.

    It writes to `scratch`. A float32 result is measured adding, as all but a step's first micro-batch do.
    """
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
    """The places of the shortest times, best first: at most `most`, and none above `factor` times the best."""
    ranked = sorted(spent, key=spent.__getitem__)
    return [place for place in ranked[:most] if spent[place] <= factor * spent[ranked[0]]]


def _heat(run: Callable[[int, ctypes.Array], float], algorithm: ctypes.Array) -> None:
    """Keep the GPU busy for `_HEAT` milliseconds, so that the race does not begin at an idle GPU's clock."""
    run(math.ceil(_HEAT / _short(run, algorithm)), algorithm)


def _race(run: Callable[[int, ctypes.Array], float], algorithms: Sequence[ctypes.Array]) -> list[float]:
    """Milliseconds of one product with each algorithm, briefly measured.

    They run first to last and then last to first, so that a drift of the clock favours none.
    """
    spent = [0.0] * len(algorithms)
    for turn in range(_ROUNDS):
        places = range(len(algorithms))
        for place in places if turn % 2 == 0 else reversed(places):
            spent[place] += _short(run, algorithms[place]) / _ROUNDS
    return spent


def _for_long(run: Callable[[int, ctypes.Array], float], algorithm: ctypes.Array, short: float) -> float:
    """Milliseconds of one product at the clock that this algorithm brings about; `short` is its time in the race."""
    run(math.ceil(_SETTLE / short), algorithm)
    turns = math.ceil(_LONG / short)
    return run(turns, algorithm) / turns


def _short(run: Callable[[int, ctypes.Array], float], algorithm: ctypes.Array) -> float:
    """Milliseconds of one product, from `_TURNS` in a row after one that is not counted."""
    run(1, algorithm)
    return run(_TURNS, algorithm) / _TURNS


def _time(
    product: Product, addresses: tuple[int, int, int], beta: float, stream: int, turns: int, algorithm: ctypes.Array
) -> float:
    """Milliseconds of `turns` products in a row, all of them together."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(turns):
        product.launch(algorithm, *addresses, beta, stream)
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def _torch_matmul(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor, add: bool) -> torch.Tensor:
    """`matmul` through torch. On CPUs it cannot put a 16-bit product into float32, so a and b become float32 first."""
    if a.dtype == out.dtype:
        return torch.addmm(out, a, b, out=out) if add else torch.mm(a, b, out=out)
    if out.is_cuda:
        kind = out.dtype
        return torch.addmm(out, a, b, out_dtype=kind, out=out) if add else torch.mm(a, b, out_dtype=kind, out=out)
    return torch.addmm(out, a.to(out.dtype), b.to(out.dtype), beta=1.0 if add else 0.0, out=out)
