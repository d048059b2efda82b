import pytest
import torch

from megatron_patch.kernels.decode_attention import decode_attention

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
LENGTHS = (1, 17, 64, 130)


def blocks_in_disorder(lengths, block, generator):
    """Tables of blocks in a random order, and how many there are; block 0 is nobody's."""
    width = -(-max(lengths) // block)
    order = (1 + torch.randperm(width * len(lengths), generator=generator)).to(torch.int32)
    return order.view(len(lengths), width), 1 + width * len(lengths)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("heads, groups, head_dim", [(3, 3, 16), (8, 2, 32), (2, 1, 128), (4, 4, 6)])
def test_one_query_a_sequence(draw, agree, device, implementation, dtype, heads, groups, head_dim):
    """Each sequence alone, its keys and values beside each other, in float64."""
    block = 16
    table, count = blocks_in_disorder(LENGTHS, block, torch.Generator().manual_seed(1))
    q = draw(dtype, len(LENGTHS), heads, head_dim, requires_grad=False)
    keys, values = (draw(dtype, count, block, groups, head_dim, requires_grad=False) for _ in range(2))
    # What no sequence owns, and what lies behind a sequence's end, must not count.
    keys[0], values[0] = 50.0, 50.0
    lengths = torch.tensor(LENGTHS, dtype=torch.int32, device=device)
    out = decode_attention(q, keys, values, table.to(device), lengths, scale=0.3, implementation=implementation)
    truth = []
    for row, length in enumerate(LENGTHS):
        k, v = (memory[table[row].long().to(device)].flatten(0, 1)[:length].double() for memory in (keys, values))
        k, v = (part.repeat_interleave(heads // groups, dim=1) for part in (k, v))
        weights = (torch.einsum("nd,snd->ns", q[row].double(), k) * 0.3).softmax(-1)
        truth.append(torch.einsum("ns,snd->nd", weights, v).flatten())
    # With groups, the tensor cores take the exponentials rounded to the values' dtype.
    agree(out, torch.stack(truth), roundings=2 if heads != groups else 1)


@pytest.mark.parametrize("wrong", ["groups", "table", "dimension"])
def test_shapes_that_do_not_agree(wrong):
    q, memory = torch.zeros(2, 3, 8), torch.zeros(4, 16, 2 if wrong == "groups" else 3, 4 if wrong == "dimension" else 8)
    table = torch.zeros(1 if wrong == "table" else 2, 2, dtype=torch.int32)
    with pytest.raises(ValueError, match="must be"):
        decode_attention(q, memory, memory, table, torch.ones(2, dtype=torch.int32), scale=1.0)
