"""One function for attention: fused, by the library that `attention_backends` chose, or unfused, in separate kernels.

It computes softmax(scale · q kᵀ) v for each head. A causal mask is aligned at the bottom right: query i of Sq sees keys
j ≤ i + Sk − Sq, so the last query sees all keys.
"""

from __future__ import annotations

import importlib

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from ._dispatch import is_wide_faster
from .attention_backends import FLASH_ATTN_2, FLASH_ATTN_3
from .attention_backends import choose_attention_backend as choose_attention_backend
from .attention_backends import is_installed as is_installed
from .softmax import causal_mask, causal_softmax
from .unfused_attention import causal_attention

# The modules of flash-attn 2 and 3, which have the same two functions.
_FLASH_ATTN = {library.backend: library.module for library in (FLASH_ATTN_2, FLASH_ATTN_3)}
# What a CUDA backend of PyTorch is called here. 'sdpa', PyTorch's own choice, is for CPUs.
PYTORCH_BACKENDS = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
BACKENDS = ("flash_attn_4", *_FLASH_ATTN, "varlen", *PYTORCH_BACKENDS, "sdpa", "unfused")
# These take a mask or kv longer than q, which cuDNN's and flash's causal kernels in PyTorch do not.
_MASKABLE = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    scale: float,
    causal: bool = True,
    backend: str,
    segment_ids: torch.Tensor | None = None,
    recompute: bool = False,
    implementation: str | None = None,
) -> torch.Tensor:
    """q [Sq, B, N, D], k and v [Sk, B, G, D] → [Sq, B, N·D].

    Args:
        q, k, v: of any strides, with a contiguous last dimension.
        scale: what q kᵀ is multiplied by, usually 1 / √D.
        backend: one of `BACKENDS`; `choose_attention_backend` names the fastest one for a machine.
        segment_ids: integer [B, S], for packed samples: a query sees the keys of its own segment only, and Sq = Sk = S.
            Tokens of one id must be adjacent. An id that comes back later is a new segment to 'flash_attn',
            'flash_attn_3' and 'varlen', and the same one to the backends that take a mask.
        recompute: 'unfused' keeps no probabilities and computes them again in its backward, where `recomputes_itself`
            says that it can. It is ignored everywhere else.
        implementation: of the softmax in 'unfused' (see `_dispatch`).

    Raises:
        ValueError: the backend is unknown or not for these arguments, heads are not a multiple of groups, a causal q is
            longer than k, or segment_ids have another shape.
    """
    _check(q, k, causal, backend, segment_ids)
    if is_wide_faster(q):
        wide = attention(
            q.float(), k.float(), v.float(), scale=scale, causal=causal, backend=backend, segment_ids=segment_ids,
            recompute=recompute, implementation=implementation,
        )  # fmt: skip
        return wide.to(q.dtype)
    if backend in _FLASH_ATTN and segment_ids is not None:
        return _flash_attn_packed(q, k, v, scale, causal, _known_bounds(segment_ids), backend)
    if backend in _FLASH_ATTN:
        return _flash_attn(q, k, v, scale, causal, backend)
    if backend == "varlen" and segment_ids is not None:
        return _varlen(q, k, v, scale, causal, _known_bounds(segment_ids))
    if backend == "flash_attn_4" and segment_ids is None:
        return _flash_attn_4(q, k, v, scale, causal)
    if backend == "flash_attn_4":
        raise ValueError("backend 'flash_attn_4' is not for packed samples here; choose 'varlen' with segment_ids.")
    if backend == "varlen":
        raise ValueError("backend 'varlen' is for packed samples and needs segment_ids; choose another without them.")
    if backend == "unfused":
        return _unfused(q, k, v, scale, causal, segment_ids, recompute, implementation)
    return _sdpa(q, k, v, scale, causal, backend, segment_ids)


def recomputes_itself(backend: str, segment_ids: torch.Tensor | None) -> bool:
    """Whether `attention` obeys `recompute`, for Sq = Sk. Where not, the caller lets autograd recompute all of it."""
    return backend == "unfused" and segment_ids is None


def _check(q, k, causal, backend, segment_ids) -> None:
    """ValueError for what `attention` does not take."""
    if backend not in BACKENDS:
        raise ValueError(f"backend is {backend!r}; allowed are {', '.join(BACKENDS)}.")
    if q.shape[2] % k.shape[2]:
        raise ValueError(f"q has {q.shape[2]} heads and k {k.shape[2]} groups; heads must be a multiple of groups.")
    if causal and q.shape[0] > k.shape[0]:
        raise ValueError(f"{q.shape[0]} queries against {k.shape[0]} keys; causal attention needs at least as many keys.")
    if segment_ids is not None and (tuple(segment_ids.shape) != (q.shape[1], q.shape[0]) or q.shape[0] != k.shape[0]):
        raise ValueError(
            f"segment_ids are {list(segment_ids.shape)}; for {q.shape[0]} queries, {k.shape[0]} keys and batch {q.shape[1]} "
            "they must be [B, S], with as many queries as keys."
        )


def attention_mask(queries, keys, causal, segment_ids, device) -> torch.Tensor | None:
    """True where a query sees a key: [Sq, Sk], or [B, 1, S, S] with segments; None where every key is seen."""
    mask = causal_mask(queries, keys, device) if causal and queries > 1 else None
    if segment_ids is None:
        return mask
    same = (segment_ids[:, None, :, None] == segment_ids[:, None, None, :]).to(device)
    return same if mask is None else same & mask


def _sdpa(q, k, v, scale, causal, backend, segment_ids):
    """PyTorch's scaled_dot_product_attention, with the one kernel that `backend` names."""
    plain = segment_ids is None and (not causal or q.shape[0] == k.shape[0])
    mask = None if plain else attention_mask(q.shape[0], k.shape[0], causal, segment_ids, q.device)
    heads, groups = q.shape[2], k.shape[2]
    kernels = _MASKABLE if mask is not None else [PYTORCH_BACKENDS.get(backend, SDPBackend.MATH)]
    if heads != groups and SDPBackend.EFFICIENT_ATTENTION in kernels:
        # The memory-efficient kernel knows no groups: each head needs keys and values of its own.
        k, v = (t.repeat_interleave(heads // groups, dim=2) for t in (k, v))
    q, k, v = (t.permute(1, 2, 0, 3) for t in (q, k, v))
    options = dict(attn_mask=mask, is_causal=causal and plain, scale=scale, enable_gqa=q.shape[1] != k.shape[1])
    if backend == "sdpa":
        out = F.scaled_dot_product_attention(q, k, v, **options)
    else:
        with sdpa_kernel(kernels):
            out = F.scaled_dot_product_attention(q, k, v, **options)
    # cuDNN's output has q's order in memory, [S, B, N, D], so this is a view and copies nothing.
    return out.permute(2, 0, 1, 3).flatten(2)


def _unfused(q, k, v, scale, causal, segment_ids, recompute, implementation):
    """Product, softmax, product. For square causal attention `unfused_attention` skips what the mask hides."""
    (queries, batch, heads, head_dim), keys = q.shape, k.shape[0]
    if heads != k.shape[2]:
        k, v = (t.repeat_interleave(heads // t.shape[2], dim=2) for t in (k, v))
    if causal and queries == keys and segment_ids is None:
        return causal_attention(q, k, v, scale, recompute=recompute, implementation=implementation)
    q, k, v = (t.reshape(t.shape[0], batch * heads, head_dim).transpose(0, 1) for t in (q, k, v))
    # The scale goes into the product, before its rounding: unscaled scores could overflow float16.
    scores = torch.baddbmm(q.new_empty(1), q, k.transpose(1, 2), beta=0.0, alpha=scale)
    if segment_ids is None and causal:
        probabilities = causal_softmax(scores, 1.0, implementation=implementation)
    else:
        mask = attention_mask(queries, keys, causal, segment_ids, q.device)
        scores = scores.view(batch, heads, queries, keys)
        scores = scores if mask is None else scores.masked_fill(~mask, -torch.inf)
        probabilities = scores.softmax(-1, dtype=torch.float32).to(q.dtype).flatten(0, 1)
    return torch.bmm(probabilities, v).transpose(0, 1).reshape(queries, batch, heads * head_dim)


def _flash_attn(q, k, v, scale, causal, backend):
    """flash-attn 2 and 3, which take [B, S, N, D]. Some of their versions return a tuple with the output first."""
    q, k, v = (t.transpose(0, 1) for t in (q, k, v))
    out = importlib.import_module(_FLASH_ATTN[backend]).flash_attn_func(q, k, v, softmax_scale=scale, causal=causal)
    out = out[0] if isinstance(out, tuple) else out
    return out.transpose(0, 1).flatten(2)


def _flash_attn_4(q, k, v, scale, causal):
    """flash-attn 4, for samples that are not packed."""
    from flash_attn.cute.interface import flash_attn_func

    length, batch, _, _ = q.shape
    # The heads of all samples pass for heads of one sample, [1, S, B·N, D]. That is a view, so nothing is copied on the
    # way in or out. Query head b·N + n still meets group b·G + n // (N/G), since N/G is the same for each sample.
    q, k, v = (t.flatten(1, 2).unsqueeze(0) for t in (q, k, v))
    out = flash_attn_func(q, k, v, softmax_scale=scale, causal=causal)
    out = out[0] if isinstance(out, tuple) else out
    return out.view(length, batch, -1)


def _flash_attn_packed(q, k, v, scale, causal, bounds, backend):
    """flash-attn 2 and 3 on packed samples; `bounds` are `segment_bounds`."""
    length, batch, _, _ = q.shape
    out = importlib.import_module(_FLASH_ATTN[backend]).flash_attn_varlen_func(
        *_flat(q, k, v), cu_seqlens_q=bounds, cu_seqlens_k=bounds, max_seqlen_q=length, max_seqlen_k=length,
        softmax_scale=scale, causal=causal,
    )  # fmt: skip
    out = out[0] if isinstance(out, tuple) else out
    return out.unflatten(0, (batch, length)).transpose(0, 1).flatten(2)


def _varlen(q, k, v, scale, causal, bounds):
    """PyTorch's flash kernel on packed samples; `bounds` are `segment_bounds`."""
    from torch.nn.attention.varlen import varlen_attn

    length, batch, heads, _ = q.shape
    # Not every version of varlen_attn knows groups.
    k, v = (t.repeat_interleave(heads // t.shape[2], dim=2) if t.shape[2] != heads else t for t in (k, v))
    q, k, v = _flat(q, k, v)
    window = (-1, 0) if causal else (-1, -1)
    out = varlen_attn(q, k, v, bounds, bounds, length, length, scale=scale, window_size=window)
    assert isinstance(out, torch.Tensor), "a tuple comes where more than the output is asked for"
    return out.unflatten(0, (batch, length)).transpose(0, 1).flatten(2)


def _flat(*tensors):
    """[S, B, heads, D] → [B·S, heads, D], sample after sample; a view where B = 1."""
    return [t.transpose(0, 1).flatten(0, 1) for t in tensors]


def segment_bounds(segment_ids: torch.Tensor, most: int | None = None) -> torch.Tensor:
    """Where segments begin in the flattened [B·S], and its end: int32 [segments + 1], or int32 [B·most + 1].

    Without `most` the number of segments is the result's size, so the host waits for the device, which a CUDA graph
    cannot record. With it the rest of the result repeats the end: segments of no token, which kernels skip.

    Args:
        most: no row of `segment_ids` has more segments.
    """
    starts = torch.ones_like(segment_ids, dtype=torch.bool)
    starts[:, 1:] = segment_ids[:, 1:] != segment_ids[:, :-1]
    starts, tokens = starts.flatten(), segment_ids.numel()
    if most is None:
        return F.pad(starts.nonzero().flatten(), (0, 1), value=tokens).to(torch.int32)
    places = torch.arange(tokens, dtype=torch.int32, device=starts.device)
    bounds = torch.full((segment_ids.shape[0] * most + 1,), tokens, dtype=torch.int32, device=starts.device)
    return bounds.scatter_reduce_(0, starts.cumsum(0) - 1, places, "amin")


class _Known:
    """What is known of the run's packed samples, and the bounds of those that attention saw last."""

    most: int | None = None  # segments of a row
    last: tuple[tuple, torch.Tensor, torch.Tensor] | None = None  # (place in memory, segment_ids, their bounds)


def expect_segments(most: int | None) -> None:
    """From here on no row of segment_ids has more than `most` segments; None: any number."""
    _Known.most, _Known.last = most, None


def forget_segments() -> None:
    """Compute bounds anew for whatever comes next: what a CUDA graph reads, it must compute itself."""
    _Known.last = None


def _known_bounds(segment_ids: torch.Tensor) -> torch.Tensor:
    """`segment_bounds`, computed once for all layers of a micro-batch.

    The layers pass the same tensor, or views of it: the same address, shape, strides and version. `last` holds the
    tensor, so that its memory cannot become another tensor's meanwhile.
    """
    place = segment_ids.data_ptr(), segment_ids.shape, segment_ids.stride(), segment_ids._version
    if _Known.last is None or _Known.last[0] != place:
        _Known.last = (place, segment_ids, segment_bounds(segment_ids, _Known.most))
    return _Known.last[2]
