"""cuBLASLt through ctypes: the library that torch has loaded, its candidates for a product, and the launch of one.

torch takes the first algorithm of cuBLAS's heuristics and offers no way to name another. Here is only what
`products.py` needs: descriptions of column-major matrices, the list of candidates, one launch. The constants are those
of cublasLt.h, whose values stay the same across versions.
"""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass

import torch

_TYPES = {torch.float32: 0, torch.float16: 2, torch.bfloat16: 14}  # cudaDataType
_COMPUTE_32F = 68  # cublasComputeType_t: sums in float32
_TRANSPOSE_A, _TRANSPOSE_B = 3, 4  # attributes of a product's description
_MOST_WORKSPACE = 1  # attribute of a preference, in bytes
_LEAST_ALIGNMENT = (5, 6, 7, 8)  # attributes of a preference: of A, B, C and D, in bytes
_SPLIT_K = 2  # attribute of an algorithm: into how many parts it cuts the sum over k
_CANDIDATES = 16  # that cuBLASLt is asked for
ALIGNMENT = 16  # bytes; every matrix begins at a multiple of it


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
    """D [m, n] = op(A) [m, k] · op(B) [k, n] + beta · D, column-major and without gaps; op may be a transposition."""

    m: int
    n: int
    k: int
    transpose_a: bool
    transpose_b: bool
    dtype: torch.dtype  # of A and B; sums are float32
    out_dtype: torch.dtype


@functools.cache
def library() -> ctypes.CDLL | None:
    """cuBLASLt as torch has loaded it into this process; None where torch brings none.

    dlopen by the library's bare name finds what is loaded already, so both use one copy.
    """
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
    """Call a function of cuBLASLt; RuntimeError with its status if it fails."""
    status = getattr(library(), name)(*arguments)
    if status:
        raise RuntimeError(f"{name} of cuBLASLt failed with status {status}.")


def _create(name: str, *arguments: object) -> ctypes.c_void_p:
    """The object that a cublasLt…Create function makes. It lives as long as the process: shapes are few."""
    made = ctypes.c_void_p()
    _call(name, ctypes.byref(made), *arguments)
    return made


def _set(name: str, target: ctypes.c_void_p, attribute: int, value: ctypes._SimpleCData) -> None:
    """Set one attribute of an object of cuBLASLt."""
    _call(name, target, attribute, ctypes.byref(value), ctypes.c_size_t(ctypes.sizeof(value)))


@functools.cache
def _handle(device: torch.device) -> ctypes.c_void_p:
    """cuBLASLt's handle for a device, one a process."""
    with torch.cuda.device(device):
        return _create("cublasLtCreate")


class Product:
    """A product of one shape on one device.

    Attributes:
        algorithms: what it may run with, in cuBLASLt's order; empty if cuBLASLt has none.
    """

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
        """The candidates that need no workspace and sum over k in one go, in cuBLASLt's order.

        A workspace would be memory that nobody counts. Split sums would make the digits depend on the choice.
        """
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
        """Launch D = A · B + beta · D on `stream` and do not wait; `a`, `b` and `d` are addresses on the device."""
        out = ctypes.c_void_p(d)
        _call(
            "cublasLtMatmul", self._handle, self._description, ctypes.byref(ctypes.c_float(1.0)), ctypes.c_void_p(a), self._a,
            ctypes.c_void_p(b), self._b, ctypes.byref(ctypes.c_float(beta)), out, self._d, out, self._d, ctypes.byref(algorithm),
            None, ctypes.c_size_t(0), ctypes.c_void_p(stream),
        )  # fmt: skip


def _layout(dtype: torch.dtype, rows: int, columns: int) -> ctypes.c_void_p:
    """The description of a column-major matrix without gaps."""
    sizes = ctypes.c_uint64(rows), ctypes.c_uint64(columns), ctypes.c_int64(rows)
    return _create("cublasLtMatrixLayoutCreate", _TYPES[dtype], *sizes)


def _split_k(algorithm: ctypes.Array) -> int:
    """Into how many parts an algorithm cuts the sum over k."""
    value, written = ctypes.c_int32(), ctypes.c_size_t()
    arguments = ctypes.byref(algorithm), _SPLIT_K, ctypes.byref(value), ctypes.c_size_t(4), ctypes.byref(written)
    _call("cublasLtMatmulAlgoConfigGetAttribute", *arguments)
    return value.value
