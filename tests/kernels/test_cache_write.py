import pytest
import torch

from megatron_patch.kernels.cache_write import write_blocks


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("groups, head_dim", [(3, 6), (2, 32)])
def test_tokens_go_where_they_belong(draw, device, implementation, dtype, groups, head_dim):
    """Strided views, as rotation leaves them; nothing else is touched."""
    tokens, block = 9, 4
    packed = draw(dtype, tokens, groups, 3, head_dim, requires_grad=False)
    k, v = packed[:, :, 1], packed[:, :, 2]
    memory = draw(dtype, 2, 6, groups, block, head_dim, requires_grad=False)
    before = memory.clone()
    places = torch.tensor([5, 4, 23, 0, 17, 8, 12, 1, 20], device=device)
    write_blocks(k, v, memory[0], memory[1], places, implementation=implementation)
    for token, place in enumerate(places.tolist()):
        before[0, place // block, :, place % block], before[1, place // block, :, place % block] = k[token], v[token]
    assert torch.equal(memory, before)


def test_shapes_that_do_not_agree():
    memory = torch.zeros(2, 3, 4, 8)
    with pytest.raises(ValueError, match="must be"):
        write_blocks(torch.zeros(2, 3, 8), torch.zeros(2, 3, 8), memory, memory, torch.zeros(3, dtype=torch.int64))
