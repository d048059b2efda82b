import math
from types import SimpleNamespace

import pytest
import torch

from megatron_patch.kernels import products
from megatron_patch.kernels._cublaslt import Product
from megatron_patch.kernels.attention import attention
from megatron_patch.kernels.products import matmul
from tests.kernels.test_attention import truth_attention

FORMS = {"forward": (False, True), "data gradient": (False, False), "weight gradient": (True, False)}


def operand(draw, dtype, rows, columns, transposed):
    """A random matrix [rows, columns], contiguous or the transposed view of a contiguous one."""
    if transposed:
        return draw(dtype, columns, rows, requires_grad=False).t()
    return draw(dtype, rows, columns, requires_grad=False)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("add", [False, True])
@pytest.mark.parametrize(
    "dtype, out_dtype", [("float32", "float32"), ("bfloat16", "bfloat16"), ("bfloat16", "float32"), ("float16", "float32")]
)
@pytest.mark.parametrize("m, n, k", [(24, 40, 56), (1024, 1152, 1088)])
def test_against_float64(draw, agree, form, add, dtype, out_dtype, m, n, k):
    dtype, out_dtype = getattr(torch, dtype), getattr(torch, out_dtype)
    a, b = (operand(draw, dtype, *sizes, transposed) for sizes, transposed in zip(((m, k), (k, n)), FORMS[form]))
    before = draw(out_dtype, m, n, requires_grad=False)
    # A product that overwrites must not read what was there: 0 · NaN is NaN.
    out = before.clone() if add else torch.full_like(before, torch.nan)
    assert matmul(a, b, out, add=add) is out
    agree(out, a.double() @ b.double() + (before.double() if add else 0.0), roundings=2 if a.is_cuda else 3)


@pytest.mark.parametrize("capability", ["AVX2", "AVX512"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits_on_cpus_with_and_without_arithmetic_for_them(draw, truth_of, agree, monkeypatch, capability, dtype):
    """Products and attention are rounded as often, whichever way a CPU takes; without arithmetic it is float32's."""
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    widened, real = [], torch.Tensor.float
    monkeypatch.setattr(torch.Tensor, "float", lambda tensor: (widened.append(tensor.dtype), real(tensor))[1])
    a, b, before = (draw(dtype, *shape, requires_grad=False) for shape in ((24, 56), (56, 40), (24, 40)))
    agree(matmul(a, b, before.clone(), add=True), a.double() @ b.double() + before.double(), roundings=3)
    q, k, v = (draw(dtype, 9, 2, 3, 16) for _ in range(3))
    out = attention(q, k, v, scale=0.25, backend="cudnn" if q.is_cuda else "sdpa")
    truth = truth_attention(*truth_of(q, k, v), 0.25)
    agree(out, truth, roundings=3)
    is_wide = not q.is_cuda and (dtype == torch.float16 or capability == "AVX2")
    assert widened.count(dtype) == 5 * is_wide, "two factors of the product; queries, keys and values"


class FakeGPU:
    """A GPU at its power limit: the clock follows the running product with a time constant of 40 ms, from a cool start.

    Algorithm i takes CYCLES[i] at the full clock. Kept up each takes 0.36 ms, and the leanest 0.34 ms.
    """

    CYCLES = (0.30, 0.306, 0.315, 0.33)

    def __init__(self, leanest: int) -> None:
        self.slowdown, self.spent, self.loaded = 1.0, 0.0, set()
        self.settled = [(0.36 - 0.02 * (place == leanest)) / cycles for place, cycles in enumerate(self.CYCLES)]

    def time(self, product, addresses, beta, stream, turns, algorithm) -> float:
        took = 0.0 if algorithm in self.loaded else 20.0
        self.loaded.add(algorithm)
        for _ in range(turns):
            each = self.CYCLES[algorithm] * self.slowdown
            self.slowdown += (self.settled[algorithm] - self.slowdown) * (1 - math.exp(-each / 40.0))
            took += each
        self.spent += took
        return took


@pytest.mark.parametrize("leanest", range(4))
def test_the_choice_is_what_costs_the_least_when_kept_up(monkeypatch, leanest):
    """The leanest algorithm is chosen, though in a short race it needs a tenth more cycles than the first."""
    gpu = FakeGPU(leanest)
    monkeypatch.setattr(products, "_time", gpu.time)
    monkeypatch.setattr(products, "_stream", lambda tensor: 0)
    product, factor = SimpleNamespace(algorithms=list(range(4))), torch.ones(8, 8)
    assert products._fastest(product, factor, factor, torch.ones(8, 8)) == leanest
    assert gpu.spent < 1500, "milliseconds of every run's start, for each shape"
    assert products._fastest(SimpleNamespace(algorithms=[]), factor, factor, factor) is None


def test_a_first_guess_leaves_the_choice_open(monkeypatch):
    tried = []
    monkeypatch.setattr(products, "Product", lambda *key: tried.append(key) or SimpleNamespace(algorithms=[]))
    monkeypatch.setattr(products, "_chosen", {})
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(products, "_stream", lambda tensor: 0)
    a = torch.ones(8, 8)
    with products.first_guess():
        assert products._choice(a, a, a, False) is None and not tried
    products._choice(a, a, a, False)
    assert len(tried) == 1


def test_a_first_pass_notes_what_several_processes_measure(monkeypatch):
    """Torch computes meanwhile; each shape is measured on its own numbers, laid out as the pass had them."""
    tried = []
    monkeypatch.setattr(products, "Product", lambda *key: tried.append(key) or SimpleNamespace(algorithms=[]))
    monkeypatch.setattr(products, "_chosen", {})
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(products, "_stream", lambda tensor: 0)
    a, b = torch.ones(8, 16), torch.ones(24, 16).t()
    with products.noting() as noted:
        assert products._choice(a, b, torch.ones(8, 24), True) is None
        assert products._choice(b.t(), a.t(), torch.ones(24, 8), False) is None
        with products.first_guess():
            products._choice(a, a.t(), torch.ones(8, 8), False)
    assert len(noted) == 2 and not tried
    for shape in noted:
        products.measure(shape, torch.device("cpu"))
    assert [shape for shape, _ in tried] == list(noted) == [shape for shape, _ in products._chosen]


def test_errors_name_the_shapes(draw):
    with pytest.raises(ValueError, match=r"out is \[3, 3\]; a \[3, 4\] · b \[4, 2\]"):
        matmul(torch.ones(3, 4), torch.ones(4, 2), torch.ones(3, 3))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="cuBLASLt is asked on GPUs only")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("out_dtype", [torch.float32, None])
def test_every_algorithm_gives_the_same_digits(draw, device, form, dtype, out_dtype):
    a, b = (operand(draw, dtype, *sizes, t) for sizes, t in zip(((2048, 4096), (4096, 3072)), FORMS[form]))
    before = draw(out_dtype or dtype, 2048, 3072, requires_grad=False)
    out = before.clone()
    assert products.is_tunable(a, b, out)
    product = Product(products.shape_of(a, b, out), out.device)
    assert len(product.algorithms) > 1
    first = None
    for algorithm in product.algorithms:
        out.copy_(before)
        product.launch(algorithm, *products._addresses(a, b, out), 1.0, products._stream(out))
        first = out.clone() if first is None else first
        assert torch.equal(out, first), "the choice of an algorithm would show in the results"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
def test_inside_a_graph_nothing_is_tried(draw):
    a, b = (draw(torch.bfloat16, 1024, 1536, requires_grad=False) for _ in range(2))
    out, graph = torch.empty(1024, 1024, device=a.device), torch.cuda.CUDAGraph()
    torch.mm(a, b.t())  # makes cuBLAS's handle, which no capture allows
    for _ in range(2):  # before the choice, and with it
        with torch.cuda.graph(graph):
            matmul(a, b.t(), out)
        out.fill_(torch.nan)
        graph.replay()
        torch.testing.assert_close(out, a.float() @ b.float().t(), rtol=1e-3, atol=1e-2)
        matmul(a, b.t(), out)
        graph = torch.cuda.CUDAGraph()
