import pytest
import torch

from megatron_patch.kernels.softmax import causal_softmax


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(2, 3, 7, 7), (3, 5, 33), (1, 1, 70), (2, 130, 130)])
def test_probabilities_and_gradient(draw, agree, truth_of, implementation, dtype, shape):
    scores, dp = draw(dtype, *shape), draw(dtype, *shape, requires_grad=False)
    scores64, dp64 = truth_of(scores, dp)
    queries, keys = shape[-2:]
    hidden = torch.ones(queries, keys, dtype=torch.bool, device=scores.device).triu(keys - queries + 1)
    truth = torch.softmax((0.3 * scores64).masked_fill(hidden, -torch.inf), -1)
    probabilities = causal_softmax(scores, 0.3, implementation=implementation)
    probabilities.backward(dp)
    truth.backward(dp64)
    agree(probabilities, truth)
    # The backward starts from rounded probabilities and subtracts products of them, so its error is larger.
    agree(scores.grad, scores64.grad, roundings=3)
    assert not probabilities[..., hidden].any() and not scores.grad[..., hidden].any()


def test_the_masked_part_is_never_read(draw, implementation):
    scores = draw(torch.float32, 2, 9, 9, requires_grad=False)
    hidden = torch.ones(9, 9, dtype=torch.bool, device=scores.device).triu(1)
    clean = causal_softmax(scores, 1.0, implementation=implementation)
    poisoned = scores.masked_fill(hidden, torch.nan).requires_grad_()
    probabilities = causal_softmax(poisoned, 1.0, implementation=implementation)
    assert torch.equal(probabilities, clean)
    probabilities.backward(torch.ones_like(scores).masked_fill(hidden, torch.nan))
    assert poisoned.grad.isfinite().all()


def test_large_scores_do_not_overflow(draw, implementation):
    scores = 60000 * torch.ones(2, 8, 8, dtype=torch.float16, device=draw(torch.float32, 1).device)
    probabilities = causal_softmax(scores, 4.0, implementation=implementation)
    assert torch.equal(probabilities[0, 3, :4], torch.full_like(probabilities[0, 3, :4], 0.25))


def test_more_queries_than_keys_is_an_error(draw):
    with pytest.raises(ValueError, match="at least as many keys"):
        causal_softmax(draw(torch.float32, 4, 3), 1.0)
