"""cuBLASLt through ctypes: the library that torch has loaded, its candidates for a product, and the launch of one.

torch takes the first algorithm of cuBLAS's heuristics and offers no way to name another. Here is only what
`products.py` needs: descriptions of column-major matrices, the list of candidates, one launch. The constants are those
of cublasLt.h, whose values stay the same across versions.
"""

from __future__ import annotations

import ctypes
import enum
import functools
from dataclasses import dataclass

import torch

FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)
# cudaDataType
_TYPES = {torch.float32: 0, torch.float16: 2, torch.bfloat16: 14, torch.float8_e4m3fn: 28, torch.float8_e5m2: 29}
_COMPUTE_32F = 68  # cublasComputeType_t: sums in float32
# Attributes of a product's description
_TRANSPOSE_A, _TRANSPOSE_B = 3, 4
_SCALE_A, _SCALE_B = 17, 18  # addresses of the numbers by which A and B are multiplied
_FAST_SUMS = 25
_SCALING_A, _SCALING_B = 31, 32
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


class Scaling(enum.IntEnum):
    """Which elements of an FP8 matrix share a float32 factor: cublasLtMatmulMatrixScale_t.

    The factors of A lie as follows; those of B likewise, with n for m. Blocks and rows need a GPU of capability 9.0 and
    cuBLASLt of CUDA 12.9.
    """

    TENSOR = 0  # all: one number
    ROW = 3  # a row of op(A): [m]
    VECTOR128 = 4  # 128 neighbours along k: [k / 128, m]
    BLOCK128 = 5  # 128 × 128: [m / 128, k / 128], the rows padded to multiples of 4; not for A and B at once


@dataclass(frozen=True)
class Shape:
    """D [m, n] = op(A) [m, k] · op(B) [k, n] + beta · D, column-major and without gaps; op may be a transposition.

    FP8 matrices have to be contiguous along k: transpose_a and not transpose_b. They may be of two dtypes.

    Attributes:
        b_dtype: of B, where A and B have two.
        scaling_a, scaling_b: of FP8 matrices. None: the matrix has no factors.
        fast_sums: the tensor cores of Hopper keep about 14 bits of a sum of FP8 products. Without this their sums are
            added to float32 every 128 elements of k.
    """

    m: int
    n: int
    k: int
    transpose_a: bool
    transpose_b: bool
    dtype: torch.dtype  # of A and B; sums are float32
    out_dtype: torch.dtype
    b_dtype: torch.dtype | None = None
    scaling_a: Scaling | None = None
    scaling_b: Scaling | None = None
    fast_sums: bool = False


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

    Args:
        scales: addresses of the factors of A and B, where the list of candidates depends on their being there.
        workspace: memory that candidates may use. None: they need none, since nobody would count it.

    Attributes:
        algorithms: what it may run with, in cuBLASLt's order; empty if cuBLASLt has none.
        answer: what cuBLASLt said when it was asked for them.
    """

    def __init__(
        self, shape: Shape, device: torch.device, scales: tuple[int, int] = (0, 0), workspace: torch.Tensor | None = None
    ) -> None:
        self._workspace = workspace
        self._handle = _handle(device)
        self._description = _create("cublasLtMatmulDescCreate", _COMPUTE_32F, _TYPES[torch.float32])
        for attribute, transpose in ((_TRANSPOSE_A, shape.transpose_a), (_TRANSPOSE_B, shape.transpose_b)):
            _set("cublasLtMatmulDescSetAttribute", self._description, attribute, ctypes.c_int32(transpose))
        self._describe_scaling(shape)
        self._point_to(*scales)
        self._a = _layout(shape.dtype, *((shape.k, shape.m) if shape.transpose_a else (shape.m, shape.k)))
        self._b = _layout(shape.b_dtype or shape.dtype, *((shape.n, shape.k) if shape.transpose_b else (shape.k, shape.n)))
        self._d = _layout(shape.out_dtype, shape.m, shape.n)
        self.algorithms = self._find_algorithms()

    def _describe_scaling(self, shape: Shape) -> None:
        """Say how A and B are scaled. Setting what the default is would be an error in libraries before CUDA 12.8."""
        for attribute, scaling in ((_SCALING_A, shape.scaling_a), (_SCALING_B, shape.scaling_b)):
            if scaling:
                _set("cublasLtMatmulDescSetAttribute", self._description, attribute, ctypes.c_int32(scaling))
        if shape.fast_sums:
            _set("cublasLtMatmulDescSetAttribute", self._description, _FAST_SUMS, ctypes.c_int8(1))

    def _find_algorithms(self) -> list[ctypes.Array]:
        """The candidates that sum over k in one go, in cuBLASLt's order.

        Split sums would make the digits depend on the choice.
        """
        room = 0 if self._workspace is None else self._workspace.nbytes
        preference = _create("cublasLtMatmulPreferenceCreate")
        set_ = functools.partial(_set, "cublasLtMatmulPreferenceSetAttribute", preference)
        set_(_MOST_WORKSPACE, ctypes.c_size_t(room))
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
        self.answer = f"status {status}, {count.value} candidates"
        return [c.algorithm for c in candidates if c.status == 0 and c.workspace <= room and _split_k(c.algorithm) == 1]

    def _point_to(self, scale_a: int, scale_b: int) -> None:
        """Say where the factors of FP8 matrices lie; 0 leaves it."""
        for attribute, address in ((_SCALE_A, scale_a), (_SCALE_B, scale_b)):
            if address:
                _set("cublasLtMatmulDescSetAttribute", self._description, attribute, ctypes.c_void_p(address))

    def launch(
        self, algorithm: ctypes.Array, a: int, b: int, d: int, beta: float, stream: int, scale_a: int = 0, scale_b: int = 0
    ) -> None:
        """Launch D = A · B + beta · D on `stream` and do not wait.

        `a`, `b` and `d` are addresses on the device, and so are `scale_a` and `scale_b`, the factors of FP8 matrices.
        """
        self._point_to(scale_a, scale_b)
        out, room = ctypes.c_void_p(d), self._workspace
        _call(
            "cublasLtMatmul", self._handle, self._description, ctypes.byref(ctypes.c_float(1.0)), ctypes.c_void_p(a), self._a,
            ctypes.c_void_p(b), self._b, ctypes.byref(ctypes.c_float(beta)), out, self._d, out, self._d, ctypes.byref(algorithm),
            None if room is None else ctypes.c_void_p(room.data_ptr()), ctypes.c_size_t(0 if room is None else room.nbytes),
            ctypes.c_void_p(stream),
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
