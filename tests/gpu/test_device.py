"""What the host reads while the device goes on: run by `make gpu`."""

from megatron_patch.core.device import read_later

import pytest
import torch

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]


def test_numbers_are_read_before_what_is_asked_for_afterwards():
    numbers = torch.tensor([1.5, -2.0], dtype=torch.float64, device="cuda")
    read = read_later(numbers)
    torch.cuda._sleep(2_000_000_000)  # clock cycles: about a second
    numbers.zero_()
    assert read() == [1.5, -2.0]
    assert not torch.cuda.current_stream().query(), "the host waited for all of it"
    torch.cuda.synchronize()
