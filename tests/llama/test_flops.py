"""A model's FLOPs equal an independent count: PyTorch counts those of transformers' forward and backward."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig as HFConfig
from transformers import LlamaForCausalLM

from megatron_patch.llama.model_config import LLAMA_SIZES, LlamaConfig, to_hf_config


@pytest.mark.parametrize("length", [64, 512])
def test_flops_of_a_token_are_those_that_pytorch_counts(length):
    """PyTorch counts all of attention; a causal model needs half of it."""
    config = LlamaConfig(2, 128, 352, 8, 8, vocab_size=2048, max_position_embeddings=2048)
    model = LlamaForCausalLM(HFConfig.from_dict({**to_hf_config(config, dtype="float32"), "attn_implementation": "eager"}))
    tokens = torch.randint(0, 2048, (1, length))
    with FlopCounterMode(display=False) as counter:
        model(tokens, labels=tokens).loss.backward()
    square = 12.0 * config.num_layers * length * config.hidden_size  # 2 products of 2·S·H, three times, a token
    products = counter.get_total_flops() / length - square
    # The counter leaves out the norms' few multiplications, and counts no gradient of tokens.
    assert config.flops_per_token(length) == pytest.approx(products + square / 2, rel=1e-3)


def test_llama_2_7b_s_figure():
    """6 · 6.607 billion products of weights (32 layers, head) and half of 12 · 32 · 2048 · 4096."""
    weights = 32 * (4 * 4096 * 4096 + 3 * 4096 * 11008) + 32000 * 4096
    assert LLAMA_SIZES["llama2-7b"].flops_per_token(2048) == pytest.approx(6 * weights + 6 * 32 * 2048 * 4096, rel=1e-4)
