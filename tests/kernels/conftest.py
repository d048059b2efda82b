"""Every kernel test runs on the GPU if there is one, else on the CPU, where Triton kernels are interpreted.

The truth is plain PyTorch in float64, written in each test. An error is a ratio of norms. A result that is rounded once
from its exact value is off by at most half an eps of its dtype. The tolerance is that, plus what float32 sums lose.
"""

import zlib

import pytest
import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FLOAT32_SUMS = 16 * torch.finfo(torch.float32).eps


@pytest.fixture(autouse=True)
def seed(request):
    """Seed by the test's name, so that a test that fails among others also fails alone."""
    torch.manual_seed(zlib.crc32(request.node.nodeid.encode()))


@pytest.fixture
def device():
    return torch.device(DEVICE)


@pytest.fixture(params=["triton", "torch"])
def implementation(request):
    if request.param == "triton":
        pytest.importorskip("triton")
    return request.param


@pytest.fixture
def draw(device):
    """draw(dtype, *shape) → fresh normal numbers, rounded to dtype, that require a gradient."""
    generator = torch.Generator().manual_seed(torch.randint(2**31, ()).item())

    def draw(dtype, *shape, requires_grad=True):
        numbers = torch.randn(*shape, generator=generator).to(device=device, dtype=dtype)
        return numbers.requires_grad_(requires_grad)

    return draw


@pytest.fixture
def agree(request, device):
    """agree(actual, truth, roundings=1): asserts the dtype-derived bound on ‖actual − truth‖ / ‖truth‖."""
    interpreted = device.type == "cpu" and request.node.callspec.params.get("implementation") == "triton"

    def agree(actual, truth, roundings=1):
        assert actual.shape == truth.shape
        if interpreted and actual.dtype == torch.bfloat16:
            roundings *= 2  # Triton's interpreter truncates float32 to bfloat16, where GPUs round
        error = (actual.double() - truth.double()).norm() / truth.double().norm()
        bound = roundings * torch.finfo(actual.dtype).eps / 2 + FLOAT32_SUMS
        assert error <= bound, f"relative error {error:.2e} exceeds {bound:.2e} in {actual.dtype}"

    return agree


@pytest.fixture
def truth_of():
    """float64 copies of tensors, as leaves."""

    def truth_of(*tensors):
        return [t.detach().double().clone().requires_grad_(t.requires_grad) for t in tensors]

    return truth_of
