import pytest
import torch

from megatron_patch.kernels.decode_attention import Reading, decode_attention
from megatron_patch.kernels.rope import rope_tables

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
LENGTHS = (1, 17, 64, 130)
SCALE = 0.3


def blocks_in_disorder(lengths, block, generator):
    """Tables of blocks in a random order, and how many there are; block 0 is nobody's."""
    width = -(-max(lengths) // block)
    order = (1 + torch.randperm(width * len(lengths), generator=generator)).to(torch.int32)
    return order.view(len(lengths), width), 1 + width * len(lengths)


def rotated(x, position, cos, sin):
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos[position] - b * sin[position], b * cos[position] + a * sin[position]], dim=-1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "heads, groups, head_dim, reading",
    [
        (3, 3, 16, Reading(dot=False)),
        (8, 2, 32, Reading()),
        (2, 1, 128, Reading(tile=32)),
        (4, 4, 6, Reading(programs=64)),
        (3, 3, 16, Reading(programs=1)),
    ],
)
def test_one_query_a_sequence(draw, agree, device, implementation, dtype, heads, groups, head_dim, reading):
    """Each sequence alone, its keys and values beside each other, in float64; its new ones are found in the cache."""
    block = 16
    table, count = blocks_in_disorder(LENGTHS, block, torch.Generator().manual_seed(1))
    packed = draw(dtype, len(LENGTHS), (heads + 2 * groups) * head_dim, requires_grad=False)
    keys, values = (draw(dtype, count, groups, block, head_dim, requires_grad=False) for _ in range(2))
    # What no sequence owns, and what lies behind a sequence's end, must not count.
    keys[0], values[0] = 50.0, 50.0
    before = keys.clone(), values.clone()
    cos, sin = rope_tables(max(LENGTHS), head_dim, device=device)
    wide = torch.cat([torch.full((len(LENGTHS), 3), 7, dtype=torch.int32), table], dim=1).to(device)
    positions = torch.tensor(LENGTHS, dtype=torch.int32, device=device) - 1
    out = decode_attention(
        packed, keys, values, wide[:, 3:], positions, cos, sin, scale=SCALE, reading=reading, implementation=implementation
    )
    truth = []
    for row, length in enumerate(LENGTHS):
        grouped = packed[row].double().view(groups, -1, head_dim)
        turned = rotated(grouped[:, :-1], length - 1, cos.double(), sin.double()).to(dtype)
        mine = table[row, (length - 1) // block]
        before[0][mine, :, (length - 1) % block] = turned[:, -1]
        before[1][mine, :, (length - 1) % block] = grouped[:, -1].to(dtype)
        k, v = (memory[table[row].long().to(device)].transpose(0, 1).flatten(1, 2)[:, :length].double() for memory in before)
        weights = (torch.einsum("ghd,gsd->ghs", turned[:, :-1].double(), k) * SCALE).softmax(-1)
        truth.append(torch.einsum("ghs,gsd->ghd", weights, v).flatten())
    # Queries are rounded once rotated, and tensor cores take the exponentials rounded to the values' dtype.
    agree(out, torch.stack(truth), roundings=3)
    agree(keys, before[0])
    assert torch.equal(values, before[1])


@pytest.mark.parametrize("wrong", ["groups", "table", "dimension", "positions"])
def test_shapes_that_do_not_agree(wrong):
    packed, memory = torch.zeros(2, 5 * 8), torch.zeros(4, 2 if wrong == "groups" else 1, 16, 6 if wrong == "dimension" else 8)
    table = torch.zeros(1 if wrong == "table" else 2, 2, dtype=torch.int32)
    positions = torch.zeros(1 if wrong == "positions" else 2, dtype=torch.int32)
    with pytest.raises(ValueError, match="must be"):
        decode_attention(packed, memory, memory, table, positions, *rope_tables(4, 8), scale=1.0)
