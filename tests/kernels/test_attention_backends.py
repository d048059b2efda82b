"""Which attention a GPU gets. There is no GPU here: capabilities and libraries are stand-ins with real signatures."""

from __future__ import annotations

import importlib
import sys

import pytest
import torch
import torch.nn.functional as F

from megatron_patch.kernels import attention_backends
from megatron_patch.kernels.attention import attention, choose_attention_backend
from tests.kernels.test_attention import truth_attention

HALF, BRAIN, FULL = torch.float16, torch.bfloat16, torch.float32
# (module, name in pip's list)
FOUR = ("flash_attn/cute/interface", "flash_attn_4-4.0.0b40")
THREE = ("flash_attn_interface", "flash_attn_3-3.0.0")
TWO = ("flash_attn/__init__", "flash_attn-2.8.3")

SIGNATURES = {
    FOUR: "def flash_attn_func(q, k, v, softmax_scale=None, causal=False, window_size=(None, None), learnable_sink=None): pass",
    THREE: """
def flash_attn_func(q, k, v, softmax_scale=None, causal=False, qv=None, q_descale=None, k_descale=None, v_descale=None,
                    window_size=(-1, -1), attention_chunk=0, softcap=0.0, num_splits=1, pack_gqa=None, deterministic=False,
                    sm_margin=0, return_attn_probs=False):
    import attention_truth
    return attention_truth.dense(q, k, v, softmax_scale, causal)
def flash_attn_varlen_func(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, seqused_q=None, seqused_k=None,
                           softmax_scale=None, causal=False, qv=None):
    import attention_truth
    return attention_truth.packed(q, k, v, cu_seqlens_q, softmax_scale, causal)
""",
    TWO: """
def flash_attn_func(q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0,
                    alibi_slopes=None, deterministic=False, return_attn_probs=False):
    import attention_truth
    return attention_truth.dense(q, k, v, softmax_scale, causal)
def flash_attn_varlen_func(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0, softmax_scale=None,
                           causal=False, window_size=(-1, -1), softcap=0.0, alibi_slopes=None, deterministic=False):
    import attention_truth
    return attention_truth.packed(q, k, v, cu_seqlens_q, softmax_scale, causal)
""",
}


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """gpu(capability, libraries) makes a machine; a library is the source text of its module."""
    monkeypatch.setattr(torch.backends.cudnn, "is_available", lambda: True)
    monkeypatch.syspath_prepend(tmp_path)
    caches = (attention_backends.library_fault, attention_backends.is_installed)

    def forget():
        for name in [name for name in sys.modules if name.startswith("flash_attn")]:
            del sys.modules[name]
        importlib.invalidate_caches()
        for cache in caches:
            cache.cache_clear()

    def make(capability, libraries):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
        for (module, distribution), text in libraries.items():
            path = tmp_path / f"{module}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            info = tmp_path / f"{distribution}.dist-info"
            info.mkdir()
            name, version = distribution.split("-")
            (info / "METADATA").write_text(f"Name: {name.replace('_', '-')}\nVersion: {version}\n")
        forget()

    forget()
    yield make
    forget()


@pytest.mark.parametrize(
    ("capability", "dtype", "head_dim", "packed", "libraries", "expected"),
    [
        # Below 8.0 (V100, T4) no flash kernel runs, whatever is installed, and no memory-efficient one in bf16.
        ((7, 0), HALF, 128, False, (FOUR, THREE, TWO), "efficient"),
        ((7, 5), HALF, 128, True, (TWO,), "efficient"),
        ((7, 5), HALF, 100, False, (), "math"),
        ((7, 5), BRAIN, 128, False, (TWO,), "math"),
        ((7, 5), FULL, 128, False, (), "efficient"),
        ((6, 1), FULL, 50, False, (), "efficient"),
        # Ampere and Ada
        ((8, 0), BRAIN, 128, False, (FOUR, THREE, TWO), "flash_attn"),
        ((8, 0), BRAIN, 128, False, (FOUR, THREE), "flash"),
        ((8, 0), BRAIN, 256, False, (), "flash"),
        ((8, 9), BRAIN, 256, False, (TWO,), "efficient"),
        ((8, 6), HALF, 128, True, (), "varlen"),
        ((8, 0), BRAIN, 100, False, (TWO,), "flash"),
        ((8, 0), BRAIN, 100, True, (TWO,), "math"),
        ((8, 0), FULL, 128, False, (TWO,), "efficient"),
        ((8, 0), FULL, 50, False, (), "math"),
        # Hopper
        ((9, 0), BRAIN, 128, False, (FOUR, THREE, TWO), "flash_attn_4"),
        ((9, 0), BRAIN, 128, True, (FOUR, THREE, TWO), "flash_attn_3"),
        ((9, 0), BRAIN, 256, False, (FOUR, THREE, TWO), "flash_attn_3"),
        ((9, 0), BRAIN, 128, False, (TWO,), "cudnn"),
        ((9, 0), BRAIN, 128, True, (TWO,), "flash_attn"),
        ((9, 0), FULL, 128, False, (FOUR, THREE, TWO), "efficient"),
        # Blackwell: flash-attn 3 is for 9.0 alone
        ((10, 0), BRAIN, 128, False, (THREE,), "cudnn"),
        ((10, 0), BRAIN, 128, False, (FOUR,), "flash_attn_4"),
        ((10, 0), BRAIN, 128, True, (THREE,), "varlen"),
        ((12, 0), BRAIN, 128, False, (FOUR, THREE), "flash"),
        ((12, 0), BRAIN, 256, False, (), "efficient"),
    ],
)
def test_the_fastest_that_takes_it(gpu, capability, dtype, head_dim, packed, libraries, expected):
    gpu(capability, {library: SIGNATURES[library] for library in libraries})
    name, why = choose_attention_backend("cuda", dtype, head_dim, packed)
    assert name == expected, why
    assert "cannot be imported" not in why


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("import no_such_library", "No module named 'no_such_library'"),
        ("raise ImportError('flash_attn_2_cuda.so: undefined symbol: _ZN3c105ErrorC2E')", "undefined symbol: _ZN3c105ErrorC2E"),
        ("raise OSError('libcudart.so.11.0: cannot open shared object file')", "libcudart.so.11.0: cannot open shared"),
        ("import torch; torch.no_such_name", "module 'torch' has no attribute 'no_such_name'"),
        ("", "has no flash_attn_func"),
    ],
)
def test_libraries_that_cannot_be_imported_are_passed_over_and_named(gpu, fault, words):
    gpu((9, 0), {FOUR: fault, THREE: fault, TWO: fault})
    name, why = choose_attention_backend("cuda", BRAIN, 128, True)
    assert name == "varlen" and "\n" not in why
    for title in ("flash-attn 3", "flash-attn 2"):
        assert f"{title} is installed but cannot be imported: " in why
    assert why.count(words) == 2
    if fault:  # flash_attn/__init__ is imported before its part of version 4
        name, why = choose_attention_backend("cuda", BRAIN, 128, False)
        assert name == "cudnn" and "flash-attn 4 is installed but cannot be imported: " in why


def test_a_library_is_not_imported_where_it_is_not_for_the_gpu(gpu):
    gpu((7, 5), {library: "raise SystemExit('imported')" for library in (FOUR, THREE, TWO)})
    assert choose_attention_backend("cuda", HALF, 128, False)[0] == "efficient"


@pytest.mark.parametrize(("library", "backend"), [(TWO, "flash_attn"), (THREE, "flash_attn_3")])
def test_libraries_are_called_as_their_signatures_want(gpu, monkeypatch, library, backend):
    """Dense and packed samples with groups, compared with attention head by head."""

    class Truth:
        @staticmethod
        def dense(q, k, v, scale, causal):
            out = truth_attention(*(t.transpose(0, 1) for t in (q, k, v)), scale, causal)
            return out.unflatten(2, (q.shape[2], -1)).transpose(0, 1)

        @staticmethod
        def packed(q, k, v, bounds, scale, causal):
            parts = [slice(a, b) for a, b in zip(bounds.tolist(), bounds.tolist()[1:])]
            outs = [Truth.dense(*(t[part].unsqueeze(0) for t in (q, k, v)), scale, causal)[0] for part in parts]
            return torch.cat(outs)

    monkeypatch.setitem(sys.modules, "attention_truth", Truth)
    gpu((9, 0), {library: SIGNATURES[library]})
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(12, 2, heads, 8, generator=generator, dtype=torch.float64) for heads in (4, 2, 2))
    ids = torch.tensor([[0] * 5 + [1] * 7, [2] * 12])
    for segments in (None, ids):
        got = attention(q, k, v, scale=0.3, backend=backend, segment_ids=segments)
        torch.testing.assert_close(got, truth_attention(q, k, v, 0.3, segment_ids=segments), rtol=1e-12, atol=1e-12)


def test_the_memory_efficient_kernel_gets_as_many_groups_as_heads(monkeypatch):
    real, seen = F.scaled_dot_product_attention, []

    def without_groups(q, k, v, **options):
        seen.append((torch._C._get_mem_efficient_sdp_enabled(), torch._C._get_math_sdp_enabled()))
        assert q.shape[1] == k.shape[1] == v.shape[1] and not options.pop("enable_gqa")
        with torch.nn.attention.sdpa_kernel([torch.nn.attention.SDPBackend.MATH]):
            return real(q, k, v, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", without_groups)
    q, k, v = (torch.randn(9, 2, heads, 8, dtype=torch.float64) for heads in (4, 2, 2))
    got = attention(q, k, v, scale=0.3, backend="efficient")
    torch.testing.assert_close(got, truth_attention(q, k, v, 0.3), rtol=1e-12, atol=1e-12)
    assert seen == [(True, False)], "the choice is the caller's, and no other kernel may take its place"
