"""Tensors of released LLaMA folders that nothing learns: which they are, and whether they may be left out.

transformers makes all of these itself when it loads a model. Frequencies that contradict config.json are an error.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch

from megatron_patch.errors import UserError
from megatron_patch.formats.lazy import LazyTensor, load
from megatron_patch.llama.model_config import LlamaConfig
from megatron_patch.llama.rope_scaling import LINEAR
from megatron_patch.weights.table import listed, natural

_ROTARY = r"model\.(?:layers\.[0-9]+\.self_attn\.)?rotary_emb\."
# (name, why it may be left out)
HARMLESS = (
    (_ROTARY + r"original_inv_freq", "frequencies before dynamic scaling; transformers from 4.43"),
    (_ROTARY + r"_?(?:cos|sin)_cached", "tables made from inv_freq; ColossalAI, transformers to 4.38"),
    (r"model\.causal_mask", "the causal mask; transformers 4.38 and 4.39"),
    (r"model\.layers\.[0-9]+\.self_attn\.(?:masked_bias|causal_mask)", "the causal mask, as in models made from GPT-NeoX's"),
)
_HARMLESS = re.compile("|".join(pattern for pattern, _ in HARMLESS))
# Frequencies that rope_theta gives. Every LLaMA folder of transformers to 4.31 has them in each layer, some later ones
# once.
_FREQUENCIES = re.compile(_ROTARY + r"inv_freq")
# The causal mask, called as in GPT-2 and GPT-NeoX. It has four axes; a bias that is learnt has one.
_MASK = re.compile(r"model\.layers\.[0-9]+\.self_attn\.bias")
_BIAS = re.compile(
    r"model\.layers\.[0-9]+\.(?:self_attn\.[qkvo]_proj|mlp\.(?:gate|up|down)_proj|(?:input|post_attention)_layernorm)\.bias"
    r"|model\.norm\.bias|lm_head\.bias"
)


def is_harmless(name: str, axes: int) -> bool:
    """Whether the tensor `name` of `axes` axes may be left out whatever it holds.

    For inv_freq see `check_frequencies`.
    """
    return bool(_HARMLESS.fullmatch(name)) or (axes == 4 and bool(_MASK.fullmatch(name)))


def is_frequencies(name: str) -> bool:
    """Whether `name` is an inv_freq [D/2]."""
    return bool(_FREQUENCIES.fullmatch(name))


def is_bias(name: str) -> bool:
    """Whether `name` is a bias of a projection or a norm. A LLaMA has none; other programs save zeros."""
    return bool(_BIAS.fullmatch(name))


def zero_biases(biases: Mapping[str, LazyTensor]) -> tuple[set[str], tuple[str, ...]]:
    """(names of those that are zero everywhere, a note of them). They may be left out; others are to be refused."""
    zero = sorted((name for name, bias in biases.items() if not bool(load(bias).any())), key=natural)
    note = f"Biases that are zero everywhere were left out, since a LLaMA has none: {listed(zero)}."
    return set(zero), (note,) if zero else ()


def check_frequencies(config: LlamaConfig, frequencies: Mapping[str, torch.Tensor]) -> tuple[str, ...]:
    """Compare each inv_freq [D/2] with what config.json gives.

    Versions of transformers before 4.32 compute with the stored ones, later ones with config.json.

    Returns:
        A note of those that mean nothing: zeros, NaNs, another size.

    Raises:
        UserError: they are frequencies of another base or scaling.
    """
    meaningless = []
    for name, values in sorted(frequencies.items(), key=lambda item: natural(item[0])):
        # A 16-bit copy is as exact as its dtype. Below 6e-5 float16 has steps of 6e-8, so small frequencies need that
        # much room.
        close = {"rtol": 1e-4 if values.dtype.itemsize >= 4 else 1e-2, "atol": 1e-12 if values.dtype.itemsize >= 4 else 6e-8}
        got = values.double().flatten()
        factors = {
            1.0,
            config.rope_factor if config.rope_type == LINEAR else 1.0,
        }  # before 4.43 inv_freq has no factor: positions are divided
        if any(_equal(got, _frequencies(config.rotary_base, config.kv_channels) / factor, close) for factor in factors):
            continue
        base = _base_of(got, config.kv_channels, close)
        if base is not None:
            raise UserError(
                f"tensor {name} holds the frequencies of {base}, and config.json says rope_theta {config.rotary_base:g}: "
                "config.json does not belong to these weights, or its rope_theta or rope_scaling must be put right."
            )
        meaningless.append(name)
    note = f"No frequencies of a rotary embedding stand in {listed(meaningless)}; config.json's rope_theta was taken."
    return (note,) if meaningless else ()


def _frequencies(base: float, head_size: int) -> torch.Tensor:
    """base^(−2i/D) for i = 0 … D/2 − 1, fp64 [D/2] (Su et al., arXiv:2104.09864)."""
    return base ** -(torch.arange(0, head_size, 2, dtype=torch.float64) / head_size)


def _equal(got: torch.Tensor, wanted: torch.Tensor, close: Mapping[str, float]) -> bool:
    return got.shape == wanted.shape and torch.allclose(got, wanted, rtol=close["rtol"], atol=close["atol"])


def _base_of(got: torch.Tensor, head_size: int, close: Mapping[str, float]) -> str | None:
    """In words, the rotary base (and linear factor) that `got` are the frequencies of; None where of none."""
    if got.numel() < 2 or not bool(torch.isfinite(got).all()) or not bool((got > 0).all()):
        return None
    pairs = got.numel()
    ratio = float(got[0] / got[-1]) ** (1 / (pairs - 1))
    base = ratio**pairs
    if ratio <= 1 or not _equal(got, got[0] * _frequencies(base, 2 * pairs), {**close, "rtol": 0.05}):
        return None
    said = f"rope_theta {base:.3g}"
    if abs(float(got[0]) - 1) > 0.01:
        said += f" with linear scaling by {1 / float(got[0]):.4g}"
    return said if 2 * pairs == head_size else f"{said} and a head size of {2 * pairs}"
