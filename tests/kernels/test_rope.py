import pytest
import torch

from megatron_patch.kernels.rope import rope_qkv, rope_tables

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
S, B = 7, 2


def rotate(x, angles):
    """x [S, B, heads, D] as complex numbers, first half + i · second half, turned by angles [S, B or 1, D/2]."""
    first, second = x.chunk(2, -1)
    turned = torch.complex(first, second) * torch.polar(torch.ones_like(angles), angles).unsqueeze(2)
    return torch.cat([turned.real, turned.imag], -1)


def angles_of(positions, head_dim):
    inverse = 10000.0 ** (-torch.arange(0, head_dim, 2, dtype=torch.float64, device=positions.device) / head_dim)
    return positions.double()[..., None] * inverse


def split(qkv, groups, head_dim):
    grouped = qkv.view(S, B, groups, -1, head_dim)
    return grouped[..., :-2, :].flatten(2, 3), grouped[..., -2, :], grouped[..., -1, :]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("heads, groups, head_dim", [(3, 3, 16), (4, 2, 64), (40, 8, 6), (2, 1, 128)])
@pytest.mark.parametrize("per_sample", [False, True])
def test_packed_projection(draw, agree, truth_of, device, implementation, dtype, heads, groups, head_dim, per_sample):
    qkv = draw(dtype, S, B, (heads + 2 * groups) * head_dim)
    (qkv64,) = truth_of(qkv)
    positions = torch.randint(0, 4, (S, B)) if per_sample else torch.arange(S)
    cos, sin = rope_tables(positions.to(device), head_dim, device=device)
    angles = angles_of(positions.to(device), head_dim)
    angles = angles if per_sample else angles[:, None]
    # A product makes the projection, because the kernel may overwrite it.
    out = rope_qkv(qkv * 1, cos, sin, heads, groups, implementation=implementation)
    q64, k64, v64 = split(qkv64, groups, head_dim)
    truth = rotate(q64, angles), rotate(k64, angles), v64
    # As attention's backward passes them: [S, B, heads, D] as views of [B, heads, S, D].
    grads = [draw(dtype, B, t.shape[2], S, head_dim, requires_grad=False).permute(2, 0, 1, 3) for t in out]
    torch.autograd.backward(out, grads)
    torch.autograd.backward(truth, truth_of(*grads))
    for actual, expected in zip(out, truth, strict=True):
        assert actual.stride(-1) == 1
        agree(actual, expected)
    agree(qkv.grad, qkv64.grad)


def test_a_consumed_projection_is_an_error_for_whoever_saved_it(draw, device):
    pytest.importorskip("triton")
    cos, sin = rope_tables(S, 16, device=device)
    qkv = draw(torch.float32, S, B, 3 * 16).exp()  # exp saves its result
    q, _, _ = rope_qkv(qkv, cos, sin, 1, 1, implementation="triton")
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        q.sum().backward()


def test_interpolated_positions_and_errors(draw, device):
    torch.testing.assert_close(rope_tables(4, 8, interpolation_factor=2.0)[0][2], rope_tables(4, 8)[0][1])
    with pytest.raises(ValueError, match="even"):
        rope_tables(4, 7)
    cos, sin = rope_tables(S, 16)
    with pytest.raises(ValueError, match=r"\[7, 2, 64\].*must be \[S, B, 9·D\]"):
        rope_qkv(torch.zeros(S, B, 64), cos, sin, 3, 3)
    with pytest.raises(ValueError, match=r"cos is \[7, 8\].*\[6, 8\]"):
        rope_qkv(torch.zeros(6, B, 3 * 16), cos, sin, 1, 1)
