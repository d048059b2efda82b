import os
import subprocess
import sys

import pytest
import torch

from megatron_patch.kernels import unfused_attention
from megatron_patch.kernels.attention import (
    _known_bounds,
    attention,
    choose_attention_backend,
    expect_segments,
    is_installed,
    segment_bounds,
)
from tests.launching import ROOT

CUDA = torch.cuda.is_available()
FUSED = ["cudnn", "flash", "efficient", "math"] if CUDA else ["sdpa", "math"]
EXTRA = ["flash_attn_4"] if CUDA and is_installed("flash-attn-4") else []


def truth_attention(q, k, v, scale, causal=True, segment_ids=None):
    """Attention by its formula, head by head: q [Sq, B, N, D], k and v [Sk, B, G, D] → [Sq, B, N·D]."""
    (queries, batch, heads, _), (keys, _, groups, _) = q.shape, k.shape
    visible = torch.ones(batch, queries, keys, dtype=torch.bool, device=q.device)
    if causal:
        visible = visible.tril(keys - queries)
    if segment_ids is not None:
        visible = visible & (segment_ids[:, :, None] == segment_ids[:, None, :])
    outs = []
    for head in range(heads):
        group = head // (heads // groups)
        scores = torch.einsum("qbd,kbd->bqk", q[:, :, head], k[:, :, group]) * scale
        weights = scores.masked_fill(~visible, -torch.inf).softmax(-1)
        outs.append(torch.einsum("bqk,kbd->qbd", weights, v[:, :, group]))
    return torch.cat(outs, -1)


PAIRS = [
    (backend, dtype)
    for backend in (*EXTRA, *FUSED, "unfused")
    for dtype in (torch.float32, torch.bfloat16, torch.float16)
    if dtype != torch.float32 or backend not in ("cudnn", "flash", "flash_attn_4")  # which have no float32
]


@pytest.mark.parametrize("backend, dtype", PAIRS)
@pytest.mark.parametrize("heads, groups, head_dim", [(3, 3, 16), (4, 2, 64), (2, 1, 128)])
def test_causal(draw, agree, truth_of, dtype, backend, heads, groups, head_dim):
    # One packed projection, as rope_qkv leaves it: q, k and v are strided views.
    packed = draw(dtype, 9, 2, groups, heads // groups + 2, head_dim)
    dout = draw(dtype, 9, 2, heads * head_dim, requires_grad=False)
    results = []
    for source, upstream in ((packed, dout), truth_of(packed, dout)):
        q, k, v = source[..., :-2, :].flatten(2, 3), source[..., -2, :], source[..., -1, :]
        scale = head_dim**-0.5
        attend = truth_attention if source is not packed else attention
        out = attend(q, k, v, scale=scale, **({"backend": backend} if source is packed else {}))
        out.backward(upstream)
        results.append((out, source.grad))
    (out, grad), (truth, truth_grad) = results
    # Probabilities, and in the backward their gradient, are rounded on the way to the second product.
    agree(out, truth, roundings=3)
    agree(grad, truth_grad, roundings=4)


@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "computed again"])
@pytest.mark.parametrize("length", [8, 13, 16])
def test_unfused_attention_in_chunks_of_queries(draw, agree, truth_of, monkeypatch, implementation, length, recompute):
    """One chunk, several with an incomplete last one, several that fill it. What no chunk reaches stays NaN."""
    monkeypatch.setattr(unfused_attention, "CHUNK", 8)
    monkeypatch.setattr(unfused_attention, "IN_CACHE", 2 * 8 * 16 * 2)  # two of six heads with 16 keys, all with 8
    made = torch.Tensor.new_empty
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda *args, **kwargs: made(*args, **kwargs).fill_(torch.nan))
    q, k, v = (draw(torch.float16, length, 2, 3, 16) for _ in range(3))
    dout = draw(torch.float16, length, 2, 48, requires_grad=False)
    q64, k64, v64, dout64 = truth_of(q, k, v, dout)
    out = unfused_attention.causal_attention(q, k, v, 0.25, recompute=recompute, implementation=implementation)
    out.backward(dout)
    truth = truth_attention(q64, k64, v64, 0.25)
    truth.backward(dout64)
    agree(out, truth, roundings=3)
    for ours, theirs in ((q, q64), (k, k64), (v, v64)):
        agree(ours.grad, theirs.grad, roundings=4)


@pytest.mark.parametrize("backend", [*FUSED, "unfused", *(["varlen"] if CUDA else [])])
def test_packed_samples_do_not_see_each_other(draw, agree, truth_of, device, backend):
    dtype = torch.bfloat16 if CUDA else torch.float32
    q, k, v = (draw(dtype, 16, 2, heads, 16) for heads in (4, 2, 2))
    ids = torch.tensor([[0] * 5 + [1] * 11, [3] * 1 + [4] * 8 + [5] * 7], device=device)
    q64, k64, v64 = truth_of(q, k, v)
    out = attention(q, k, v, scale=0.25, backend=backend, segment_ids=ids)
    truth = truth_attention(q64, k64, v64, 0.25, segment_ids=ids)
    out.sum().backward()
    truth.sum().backward()
    agree(out, truth, roundings=3)
    agree(v.grad, v64.grad, roundings=4)
    agree(k.grad, k64.grad, roundings=8)


@pytest.mark.parametrize("backend", [*FUSED, "unfused"])
@pytest.mark.parametrize("queries", [1, 3])
@pytest.mark.parametrize("causal", [True, False])
def test_keys_of_earlier_tokens(draw, agree, truth_of, backend, queries, causal):
    dtype = torch.bfloat16 if CUDA else torch.float32
    q, k, v = draw(dtype, queries, 2, 4, 16), draw(dtype, 11, 2, 2, 16), draw(dtype, 11, 2, 2, 16)
    truth = truth_attention(*truth_of(q, k, v), 0.25, causal)
    agree(attention(q, k, v, scale=0.25, causal=causal, backend=backend), truth, roundings=3)


def test_bounds_of_segments():
    ids = torch.tensor([[7, 7, 8, 7], [7, 7, 7, 7]])
    assert segment_bounds(ids).tolist() == [0, 2, 3, 4, 8]
    assert segment_bounds(ids, most=4).tolist() == [0, 2, 3, 4, 8, 8, 8, 8, 8]
    found = _known_bounds(ids)
    assert _known_bounds(ids.detach()) is found, "every layer would compute them"
    ids[0, 3] = 8
    assert _known_bounds(ids).tolist() == [0, 2, 4, 8]
    expect_segments(3)
    try:
        assert _known_bounds(ids).tolist() == [0, 2, 4, 8, 8, 8, 8]
    finally:
        expect_segments(None)


def test_choice_says_why(device):
    name, why = choose_attention_backend("cpu", torch.float32, 128, False)
    assert name == "sdpa" and "CPU" in why
    if device.type == "cuda":
        assert choose_attention_backend(device, torch.float32, 128, False)[0] == "efficient"
        name, why = choose_attention_backend(device, torch.bfloat16, 128, False)
        assert name in ("flash_attn_4", "flash_attn_3", "cudnn", "flash_attn", "flash") and why


def test_flash_attn_4_without_what_it_needs(tmp_path):
    """pip lists a library that cannot be imported: training takes the next best one and says so at its start."""
    (tmp_path / "flash_attn_4-4.0.0.dist-info").mkdir()
    (tmp_path / "flash_attn_4-4.0.0.dist-info" / "METADATA").write_text("Name: flash-attn-4\nVersion: 4.0.0\n")
    package = tmp_path / "flash_attn" / "cute"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").touch(), (package / "__init__.py").touch()
    (package / "interface.py").write_text("import no_such_cutlass\n")
    code = (
        "import torch; from megatron_patch.kernels.attention import choose_attention_backend as choose;"
        "torch.cuda.get_device_capability = lambda device: (9, 0); torch.backends.cudnn.is_available = lambda: True;"
        "print(*choose('cuda', torch.bfloat16, 128, False))"
    )
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    result = subprocess.run([sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.startswith("cudnn cuDNN")
    assert "flash-attn 4 is installed but cannot be imported: No module named 'no_such_cutlass'" in result.stdout


def test_errors(draw):
    q, k = draw(torch.float32, 4, 1, 3, 8), draw(torch.float32, 3, 1, 2, 8)
    with pytest.raises(ValueError, match="'fastest'.*unfused"):
        attention(q, q, q, scale=1.0, backend="fastest")
    with pytest.raises(ValueError, match="multiple of groups"):
        attention(q, k, k, scale=1.0, backend="sdpa")
    with pytest.raises(ValueError, match="at least as many keys"):
        attention(q, q[:3], q[:3], scale=1.0, backend="sdpa")
    with pytest.raises(ValueError, match=r"segment_ids are \[4\]"):
        attention(q, q, q, scale=1.0, backend="sdpa", segment_ids=torch.zeros(4))
