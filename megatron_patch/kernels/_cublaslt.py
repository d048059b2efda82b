"""cuBLASLt through ctypes: the library that torch has loaded, asked for its candidates for one product.

torch takes the first algorithm of cuBLAS's heuristics and offers no way to name another. Only what `products.py` needs is
here: descriptions of column-major matrices, the list of candidates, one launch. Numbers are those of cublasLt.h, which
keeps them across versions.
"""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass

import torch

_TYPES = {torch.float32: 0, torch.float16: 2, torch.bfloat16: 14}  # cudaDataType
_COMPUTE_32F = 68
_TRANSPOSE_A, _TRANSPOSE_B = 3, 4  # attributes of a product's description
_MOST_WORKSPACE = 1  # attributes of a preference
_LEAST_ALIGNMENT = (5, 6, 7, 8)
_SPLIT_K = 2  # attribute of an algorithm
_CANDIDATES = 16
ALIGNMENT = 16  # bytes


class _Candidate(ctypes.Structure):
    """cublasLtMatmulHeuristicResult_t, whose first member is the algorithm."""

    _fields_ = [
        ("algorithm", ctypes.c_uint64 * 8),
        ("workspace", ctypes.c_size_t),
        ("status", ctypes.c_int),
        ("waves", ctypes.c_float),
        ("reserved", ctypes.c_int * 4),
    ]


@dataclass(frozen=True)
class Shape:
    """D [m, n] = op(A) [m, k] · op(B) [k, n] + beta · D, all column-major without gaps; op transposes or does nothing."""

    m: int
    n: int
    k: int
    transpose_a: bool
    transpose_b: bool
    dtype: torch.dtype  # of A and B; sums are float32
    out_dtype: torch.dtype


@functools.cache
def library() -> ctypes.CDLL | None:
    """cuBLASLt as this process has it; None where torch brings none."""
    version = torch.version.cuda
    if version is None:
        return None
    try:
        return ctypes.CDLL(f"libcublasLt.so.{version.split('.')[0]}")
    except OSError:
        return None


def version() -> int:
    """cuBLASLt's own number; 0 without it."""
    found = library()
    if found is None:
        return 0
    found.cublasLtGetVersion.restype = ctypes.c_size_t
    return found.cublasLtGetVersion()


def _call(name: str, *arguments: object) -> None:
    status = getattr(library(), name)(*arguments)
    if status:
        raise RuntimeError(f"{name} of cuBLASLt failed with status {status}.")


def _create(name: str, *arguments: object) -> ctypes.c_void_p:
    made = ctypes.c_void_p()
    _call(name, ctypes.byref(made), *arguments)
    return made


def _set(name: str, target: ctypes.c_void_p, attribute: int, value: ctypes._SimpleCData) -> None:
    _call(name, target, attribute, ctypes.byref(value), ctypes.c_size_t(ctypes.sizeof(value)))


@functools.cache
def _handle(device: torch.device) -> ctypes.c_void_p:
    with torch.cuda.device(device):
        return _create("cublasLtCreate")


class Product:
    """A described product on one device, and the algorithms that it may run with."""

    def __init__(self, shape: Shape, device: torch.device) -> None:
        self._handle = _handle(device)
        self._description = _create("cublasLtMatmulDescCreate", _COMPUTE_32F, _TYPES[torch.float32])
        for attribute, transpose in ((_TRANSPOSE_A, shape.transpose_a), (_TRANSPOSE_B, shape.transpose_b)):
            _set("cublasLtMatmulDescSetAttribute", self._description, attribute, ctypes.c_int32(transpose))
        self._a = _layout(shape.dtype, *((shape.k, shape.m) if shape.transpose_a else (shape.m, shape.k)))
        self._b = _layout(shape.dtype, *((shape.n, shape.k) if shape.transpose_b else (shape.k, shape.n)))
        self._d = _layout(shape.out_dtype, shape.m, shape.n)
        self.algorithms = self._find_algorithms()

    def _find_algorithms(self) -> list[ctypes.Array]:
        """Those that need no workspace and sum over k in one go, in the order of cuBLAS's own guess."""
        preference = _create("cublasLtMatmulPreferenceCreate")
        set_ = functools.partial(_set, "cublasLtMatmulPreferenceSetAttribute", preference)
        set_(_MOST_WORKSPACE, ctypes.c_size_t(0))
        for attribute in _LEAST_ALIGNMENT:
            set_(attribute, ctypes.c_uint32(ALIGNMENT))
        found, count = (_Candidate * _CANDIDATES)(), ctypes.c_int()
        cublas_lt = library()
        assert cublas_lt is not None, "_create has just called it"
        status = cublas_lt.cublasLtMatmulAlgoGetHeuristic(
            self._handle, self._description, self._a, self._b, self._d, self._d, preference, _CANDIDATES, found,
            ctypes.byref(count),
        )  # fmt: skip
        cublas_lt.cublasLtMatmulPreferenceDestroy(preference)
        candidates = found[: count.value] if status == 0 else []
        return [c.algorithm for c in candidates if c.status == 0 and c.workspace == 0 and _split_k(c.algorithm) == 1]

    def launch(self, algorithm: ctypes.Array, a: int, b: int, d: int, beta: float, stream: int) -> None:
        """Enqueue one product; `a`, `b` and `d` are addresses on the device."""
        out = ctypes.c_void_p(d)
        _call(
            "cublasLtMatmul", self._handle, self._description, ctypes.byref(ctypes.c_float(1.0)), ctypes.c_void_p(a), self._a,
            ctypes.c_void_p(b), self._b, ctypes.byref(ctypes.c_float(beta)), out, self._d, out, self._d, ctypes.byref(algorithm),
            None, ctypes.c_size_t(0), ctypes.c_void_p(stream),
        )  # fmt: skip


def _layout(dtype: torch.dtype, rows: int, columns: int) -> ctypes.c_void_p:
    sizes = ctypes.c_uint64(rows), ctypes.c_uint64(columns), ctypes.c_int64(rows)
    return _create("cublasLtMatrixLayoutCreate", _TYPES[dtype], *sizes)


def _split_k(algorithm: ctypes.Array) -> int:
    value, written = ctypes.c_int32(), ctypes.c_size_t()
    arguments = ctypes.byref(algorithm), _SPLIT_K, ctypes.byref(value), ctypes.c_size_t(4), ctypes.byref(written)
    _call("cublasLtMatmulAlgoConfigGetAttribute", *arguments)
    return value.value
