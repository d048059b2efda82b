import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from megatron_patch.kernels.cross_entropy import vocab_parallel_cross_entropy


def losses(logits, labels):
    """log Σ exp − the label's logit; 0 where a label is below 0."""
    at_label = logits.gather(-1, labels.clamp(0, logits.shape[-1] - 1)[..., None])[..., 0]
    at_label = torch.where(labels < logits.shape[-1], at_label, 0.0)
    return torch.where(labels < 0, 0.0, logits.logsumexp(-1) - at_label)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(7, 2, 801), (3, 1), (2, 9001)])
def test_loss_and_gradient(draw, agree, truth_of, device, implementation, dtype, shape):
    logits = draw(dtype, *shape)
    labels = torch.randint(0, shape[-1], shape[:-1], device=device)
    labels[-1] = -100
    dloss = draw(torch.float32, *shape[:-1], requires_grad=False)
    logits64, dloss64 = truth_of(logits, dloss)
    # A product makes the logits, because the loss overwrites them.
    scaled = logits * 4
    loss, truth = (
        vocab_parallel_cross_entropy(scaled, labels, implementation=implementation),
        losses(logits64 * 4, labels),
    )
    loss.backward(dloss)
    truth.backward(dloss64)
    assert loss.dtype == torch.float32 and not loss[-1].any() and not logits.grad[-1].any()
    if shape[-1] > 1:
        agree(loss, truth)
        agree(logits.grad, logits64.grad)


def test_a_maximum_that_grows_along_the_vocabulary(agree, device, implementation):
    rising = torch.linspace(-50, 50, 9001, device=device)
    logits = torch.stack([rising, rising.flip(0), rising.abs()])
    labels = torch.tensor([0, 1, 2], device=device)
    agree(
        vocab_parallel_cross_entropy(logits, labels, implementation=implementation),
        losses(logits.double(), labels),
    )


def test_gradient_takes_the_place_of_the_logits_and_only_once(draw, device, implementation):
    logits = draw(torch.float32, 4, 50) * 1
    loss = vocab_parallel_cross_entropy(logits, torch.arange(4, device=device), implementation=implementation).sum()
    gradient = torch.autograd.grad(loss, logits, retain_graph=True)[0]
    assert gradient.data_ptr() == logits.data_ptr()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_labels_beyond_the_vocabulary_are_finite_and_masked_away(draw, device, implementation):
    logits = draw(torch.float32, 3, 50)
    labels = torch.tensor([49, 50, 2**40], device=device)
    loss = vocab_parallel_cross_entropy(logits * 1, labels, implementation=implementation)
    torch.testing.assert_close(loss[1:], logits[1:].logsumexp(-1))
    (loss * torch.tensor([1.0, 0.0, 0.0], device=device)).sum().backward()
    assert not logits.grad[1:].any() and logits.grad[0].any()


@pytest.mark.parametrize("width, valid", [(808, 801), (9001, 5000), (16, 1)])
def test_padding_is_neither_summed_nor_learnt(draw, agree, truth_of, device, implementation, width, valid):
    """The columns from `valid` on hold the largest logits, and one label lies in them: they must not count."""
    padded = torch.full((5, width), 100.0, device=device)
    logits = draw(torch.float32, 5, valid)
    labels = torch.randint(0, valid, (5,), device=device)
    labels[-1] = width - 1
    padded = torch.cat([logits * 1, padded[:, valid:]], dim=-1).detach().requires_grad_()
    loss = vocab_parallel_cross_entropy(padded * 1, labels, valid=valid, implementation=implementation)
    (wanted,) = truth_of(logits)
    truth = losses(wanted, labels)
    dloss = torch.rand(5, device=device)
    loss.backward(dloss)
    truth.backward(dloss.double())
    torch.testing.assert_close(loss, truth.float(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(padded.grad[:, :valid], wanted.grad.float(), rtol=1e-5, atol=1e-7)
    assert not padded.grad[:, valid:].any()


def check_split_vocabulary(rank, file, implementation):
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    torch.manual_seed(0)
    logits = torch.randn(5, 3, 120, dtype=torch.float64) * 30
    labels = torch.randint(0, 120, (5, 3))
    labels[0, 0], labels[1, 1], labels[2, 2] = -100, -1, 60
    mine = logits[..., rank * 60 : rank * 60 + 60].float().requires_grad_()
    loss = vocab_parallel_cross_entropy(mine * 1, labels, dist.group.WORLD, vocab_start=rank * 60, implementation=implementation)
    truth = losses(logits.requires_grad_(), labels)
    weights = torch.rand(5, 3, dtype=torch.float64)
    loss.backward(weights.float())
    truth.backward(weights)
    torch.testing.assert_close(loss, truth.float(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(mine.grad, logits.grad[..., rank * 60 : rank * 60 + 60].float(), rtol=1e-5, atol=1e-6)
    dist.destroy_process_group()


def test_vocabulary_split_over_two_processes(tmp_path, implementation):
    mp.spawn(check_split_vocabulary, (tmp_path / "rendezvous", implementation), nprocs=2)


def test_shapes_that_disagree_are_an_error(draw):
    with pytest.raises(ValueError, match=r"labels are \[4\].*\[3\]"):
        vocab_parallel_cross_entropy(draw(torch.float32, 3, 10), torch.zeros(4, dtype=torch.long))
