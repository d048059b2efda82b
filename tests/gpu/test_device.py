"""The host reads numbers while the device goes on: run by `make gpu`."""

from megatron_patch.core.device import read_later

import pytest
import torch

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]


def test_numbers_are_read_before_what_is_asked_for_afterwards():
    numbers, second = torch.zeros(2, dtype=torch.float64, device="cuda"), 2_000_000_000  # clock cycles
    given = torch.tensor([1.5, -2.0], dtype=torch.float64, device="cuda")
    # Each kernel runs once before: loading one waits for the kernels that run.
    numbers.copy_(given), numbers.zero_(), torch.cuda._sleep(1)
    torch.cuda.synchronize()
    torch.cuda._sleep(second)
    numbers.copy_(given)
    read = read_later(numbers)
    asked = torch.cuda.Event()
    asked.record()
    assert not asked.query(), "the host waited where it only asks"
    torch.cuda._sleep(second)
    numbers.zero_()
    assert read() == [1.5, -2.0]
    assert asked.query() and not torch.cuda.current_stream().query(), "the host waited for all of it"
    torch.cuda.synchronize()
