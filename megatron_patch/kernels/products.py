"""Large matrix products, each with the algorithm that was measured to be the fastest for its shape.

torch takes cuBLAS's first guess. The guess is far off where a product adds to float32: LLaMA-2 7B's weight gradients at
2048 tokens take a sixth less time with another tile. `_race.py` measures.

Processes may choose differently, and no digit changes. Candidates differ in tiles and in the order of tiles, and not in
the order in which an element's products are summed; tests/kernels/test_products.py asserts that on GPUs.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import NamedTuple

import torch

from ._cublaslt import ALIGNMENT, FP8, Product, Scaling, Shape, library
from ._dispatch import is_wide_faster, prefers_torch
from ._race import fastest

LARGE = 1 << 30  # multiply-adds; in a smaller product the algorithm does not matter

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

    def draw(dtype: torch.dtype, *sizes: int) -> torch.Tensor:
        return torch.randn(*sizes, dtype=torch.bfloat16 if dtype in FP8 else dtype, device=device).to(dtype)

    a_dtype = shape.b_dtype or shape.dtype  # cuBLAS's second matrix is the first here
    a = draw(a_dtype, shape.k, shape.n).t() if shape.transpose_b else draw(a_dtype, shape.n, shape.k)
    b = draw(shape.dtype, shape.m, shape.k).t() if shape.transpose_a else draw(shape.dtype, shape.k, shape.m)
    out = torch.zeros(shape.n, shape.m, dtype=shape.out_dtype, device=device)
    scaled = shape.dtype in FP8
    assert (scaled_shape if scaled else shape_of)(a, b, out) == shape
    product, one = Product(shape, device), torch.ones(1, device=device)
    algorithm = _fastest(product, a, b, out, (one.data_ptr(),) * 2 if scaled else ())
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


def scaled_matmul(
    a: torch.Tensor, b: torch.Tensor, out: torch.Tensor, scale_a: torch.Tensor, scale_b: torch.Tensor, *, add: bool = False
) -> torch.Tensor:
    """out [M, N] = scale_a · scale_b · a [M, K] · b [K, N] of FP8 matrices, or += with `add`; otherwise as `matmul`.

    Where cuBLASLt does not compute it, the FP8 numbers are multiplied in float32: for small products and on CPUs.

    Args:
        a: contiguous, E4M3 or E5M2.
        b: the transposed view of a contiguous matrix, E4M3 or E5M2; not both are E5M2.
        out: contiguous, bfloat16 or float32. It is also returned.
        scale_a, scale_b: float32 [1] on the device.

    Raises:
        ValueError: the shapes do not agree, or a or b lies otherwise in memory.
    """
    if (
        a.shape[1] != b.shape[0]
        or tuple(out.shape) != (a.shape[0], b.shape[1])
        or not (a.is_contiguous() and b.t().is_contiguous())
    ):
        raise ValueError(
            f"out is {list(out.shape)}; a {list(a.shape)} · b {list(b.shape)} does not fit it, or is not contiguous along K."
        )
    scales = scale_b.data_ptr(), scale_a.data_ptr()
    choice = _choice(a, b, out, add, scales) or _guess(scaled_shape(a, b, out), out.device) if is_tunable(a, b, out) else None
    if choice is None:
        return _torch_scaled_matmul(a, b, out, scale_a, scale_b, add)
    product, algorithm = choice
    product.launch(algorithm, *_addresses(a, b, out), 1.0 if add else 0.0, _stream(out), *scales)
    return out


def rows_of(tensor: torch.Tensor) -> torch.Tensor:
    """[..., width] → [rows, width], as products take their factors; a view."""
    return tensor.view(-1, tensor.size(-1))


def is_tunable(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor) -> bool:
    """Whether cuBLASLt computes a · b: a large product of 16-bit or FP8 matrices on a GPU, aligned and without gaps."""
    fp8 = a.dtype in FP8 and b.dtype in FP8
    return (
        out.is_cuda
        and not prefers_torch()
        and (fp8 or (a.dtype == b.dtype and a.dtype in (torch.bfloat16, torch.float16)))
        and out.dtype in (torch.bfloat16 if fp8 else a.dtype, torch.float32)
        and a.shape[0] * a.shape[1] * b.shape[1] >= LARGE
        and out.is_contiguous()
        and all(t.is_contiguous() or t.t().is_contiguous() for t in (a, b))
        and all(size % (16 if fp8 else 8) == 0 for size in (*a.shape, *b.shape))
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


def scaled_shape(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor) -> Shape:
    """`shape_of` for FP8 matrices with one factor each. Sums are exact enough only without fast sums: docs say why."""
    shape = shape_of(a, b, out)
    return replace(shape, dtype=b.dtype, b_dtype=a.dtype, scaling_a=Scaling.TENSOR, scaling_b=Scaling.TENSOR)


@functools.cache
def _guess(shape: Shape, device: torch.device) -> tuple[Product, ctypes.Array] | None:
    """A product with cuBLASLt's first candidate, for where nothing may be measured; None if it has none."""
    product = Product(shape, device)
    return (product, product.algorithms[0]) if product.algorithms else None


def _choice(a, b, out, add, scales=()) -> tuple[Product, ctypes.Array] | None:
    """The product of this shape and its algorithm, measured now if need be; None: neither measured nor remembered.

    scales: addresses of the factors of FP8 matrices, in cuBLAS's order.
    """
    key = (scaled_shape if scales else shape_of)(a, b, out), out.device
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
            algorithm = _fastest(product, a, b, torch.empty_like(out) if add else out, scales)
        _chosen[key] = (product, algorithm) if algorithm is not None else None
    return _chosen[key]


def _known(product: Product, shape: Shape) -> ctypes.Array | None:
    """The algorithm that `remember` was told, if the list of candidates has the length that it had then."""
    choice = _remembered.get(shape)
    if choice is None or choice.candidates != len(product.algorithms) or not 0 <= choice.place < choice.candidates:
        return None
    return product.algorithms[choice.place]


def _fastest(
    product: Product, a: torch.Tensor, b: torch.Tensor, scratch: torch.Tensor, scales: tuple[int, ...] = ()
) -> ctypes.Array | None:
    """The algorithm that takes the least time when it runs for long; None if cuBLASLt has no candidate.

    It writes to `scratch`. A float32 result is measured adding, as all but a step's first micro-batch do. `scales`:
    addresses of the factors of FP8 matrices, in cuBLAS's order.
    """
    beta = 1.0 if scratch.dtype == torch.float32 else 0.0
    run = functools.partial(_time, product, (*_addresses(a, b, scratch), *scales), beta, _stream(scratch))
    return fastest(run, product.algorithms)


def _time(product: Product, addresses: tuple[int, ...], beta: float, stream: int, turns: int, algorithm: ctypes.Array) -> float:
    """Milliseconds of `turns` products in a row, all of them together."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    a, b, d, *scales = addresses
    start.record()
    for _ in range(turns):
        product.launch(algorithm, a, b, d, beta, stream, *scales)
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def _torch_matmul(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor, add: bool) -> torch.Tensor:
    """`matmul` through torch. On CPUs it cannot put a 16-bit product into float32, so a and b become float32 first.

    So they do for a 16-bit result where that takes less time.
    """
    if a.dtype == out.dtype and is_wide_faster(out):
        product = a.float() @ b.float()
        return out.add_(product) if add else out.copy_(product)
    if a.dtype == out.dtype:
        return torch.addmm(out, a, b, out=out) if add else torch.mm(a, b, out=out)
    if out.is_cuda:
        kind = out.dtype
        return torch.addmm(out, a, b, out_dtype=kind, out=out) if add else torch.mm(a, b, out_dtype=kind, out=out)
    return torch.addmm(out, a.to(out.dtype), b.to(out.dtype), beta=1.0 if add else 0.0, out=out)


def _torch_scaled_matmul(
    a: torch.Tensor, b: torch.Tensor, out: torch.Tensor, scale_a: torch.Tensor, scale_b: torch.Tensor, add: bool
) -> torch.Tensor:
    """`scaled_matmul` in float32. The factors come after the sum, as in cuBLASLt; FP8 products are exact in float32."""
    product = (a.float() @ b.float()).mul_(scale_a * scale_b)
    return out.add_(product) if add else out.copy_(product)
