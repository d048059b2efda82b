import pytest
import torch

from megatron_patch.kernels.embedding import CHUNK, embedding

# Runs of one token that end at a chunk's border, cross one, fill several, and the rest of a row of padding.
LENGTHS = [1, CHUNK - 1, CHUNK, 2, 3 * CHUNK + 5, 1, 1, 2 * CHUNK, 7]


def tokens_of(device, shuffled=True):
    tokens = torch.cat([torch.full((n,), 3 * i + 1) for i, n in enumerate(LENGTHS)])
    return (tokens[torch.randperm(len(tokens))] if shuffled else tokens).to(device)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("h", [40, 1100])
@pytest.mark.parametrize("accumulate", [False, True])
def test_against_float64(draw, agree, truth_of, device, implementation, dtype, h, accumulate):
    tokens = tokens_of(device)
    weight = draw(getattr(torch, dtype), 31, h)
    (truth,) = truth_of(weight)
    target = draw(torch.float32, 31, h, requires_grad=False) if accumulate else None
    before = target.double() if accumulate else 0.0
    rows = embedding(tokens, weight, weight_grad=target, implementation=implementation)
    assert torch.equal(rows, weight[tokens])
    dy = draw(weight.dtype, *rows.shape, requires_grad=False)
    rows.backward(dy)
    truth[tokens].backward(dy.double())
    agree(target if accumulate else weight.grad, before + truth.grad)


def test_a_part_of_the_vocabulary(draw, device, implementation):
    """Two halves of the vocabulary sum to the whole: each gives zeros and no gradient for the other's tokens."""
    tokens = tokens_of(device).view(2, -1)
    weight = draw(torch.float32, 32, 24)
    whole = embedding(tokens, weight, implementation=implementation)
    dy = torch.randn_like(whole)
    whole.backward(dy)
    halves = [half.detach().clone().requires_grad_() for half in weight.split(16)]
    parts = [embedding(tokens, half, vocab_start=16 * i, implementation=implementation) for i, half in enumerate(halves)]
    assert torch.equal(parts[0] + parts[1], whole)
    for part in parts:
        part.backward(dy)
    torch.testing.assert_close(torch.cat([half.grad for half in halves]), weight.grad)


def test_the_same_digits_every_time(draw, device, implementation):
    tokens, weight = tokens_of(device), draw(torch.bfloat16, 31, 64)
    dy = draw(torch.bfloat16, len(tokens), 64, requires_grad=False)
    found = []
    for _ in range(3):
        target = torch.zeros(31, 64, device=device)
        embedding(tokens, weight, weight_grad=target, implementation=implementation).backward(dy)
        found.append(target)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_errors_name_the_shapes():
    with pytest.raises(ValueError, match=r"weight_grad is torch.float32 \[4, 3\]; .* \[4, 2\]"):
        embedding(torch.zeros(1, dtype=torch.long), torch.zeros(4, 2), weight_grad=torch.zeros(4, 3))
