"""Which elements dropout keeps follows from their place in the run alone."""

import pytest
import torch

from megatron_patch.kernels.dropout import Draws, kept, philox

# Random123's kat_vectors of philox4x32-10: counter, key, what comes out.
KNOWN = [
    ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


@pytest.mark.parametrize("counter, key, wanted", KNOWN)
def test_the_generator_is_random123_s(counter, key, wanted):
    assert [int(one) for one in philox(tuple(map(torch.tensor, counter)), tuple(key))] == wanted


def test_a_mask_follows_from_seed_layer_sample_position_and_column(device, implementation):
    samples, draws = torch.tensor([7, 1, 3 << 31], device=device), Draws(seed=1, place=16, rate=0.25)

    def mask(width=200, samples=samples, draws=draws, first=0, implementation=implementation):
        return kept(5, width, samples, draws, first_column=first, implementation=implementation)

    whole = mask()
    assert whole.shape == (5, 3, 200) and whole.unique().tolist() == [0, 1]
    assert whole.float().mean().item() == pytest.approx(0.75, abs=0.03)
    # Any rows of the batch, and any columns, as tensor-parallel ranks have them.
    assert torch.equal(mask(samples=samples[1:]), whole[:, 1:])
    for first in (72, 100, 128):
        assert torch.equal(mask(200 - first, first=first), whole[..., first:])
    for other in (Draws(2, 16, 0.25), Draws(1, 17, 0.25)):
        assert not torch.equal(mask(draws=other), whole)
    rows = whole.flatten(0, 1)
    assert len(rows.unique(dim=0)) == len(rows) and not torch.equal(whole[..., :32], whole[..., 32:64])
    assert torch.equal(whole, mask(implementation="torch"))
