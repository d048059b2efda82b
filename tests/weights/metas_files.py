"""Write a transformers LLaMA as Meta publishes one, after llama/model.py of meta-llama/llama and fairscale's layers."""

from __future__ import annotations

import json
from pathlib import Path

import torch

# Meta's name → the axis along which fairscale's ranks have parts; None if each rank has the whole tensor.
_ATTENTION = {"wq": ("q_proj", 0), "wk": ("k_proj", 0), "wv": ("v_proj", 0), "wo": ("o_proj", 1)}
_FEED_FORWARD = {"w1": ("gate_proj", 0), "w2": ("down_proj", 1), "w3": ("up_proj", 0)}


def interleaved(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Put the rows of q or k from Hugging Face's order into Meta's: rows i and i + D/2 of a head become neighbours."""
    size = weight.shape[0] // heads
    rows = [head * size + pair + half * size // 2 for head in range(heads) for pair in range(size // 2) for half in (0, 1)]
    return weight[rows]


def write_meta(folder: Path, model, shards: int, generation: int = 2, rows_of_embedding: bool = False, **changed) -> Path:
    """Write consolidated.NN.pth and params.json for a LlamaForCausalLM; `changed` are keys of params.json."""
    config, weights = model.config, {name: tensor.detach() for name, tensor in model.state_dict().items()}
    whole = {
        "tok_embeddings.weight": (weights["model.embed_tokens.weight"], 0 if rows_of_embedding else 1),
        "norm.weight": (weights["model.norm.weight"], None),
        "output.weight": (weights["lm_head.weight"], 0),
    }
    for layer in range(config.num_hidden_layers):
        here, there = f"model.layers.{layer}.", f"layers.{layer}."
        for meta, (name, axis) in _ATTENTION.items():
            weight = weights[f"{here}self_attn.{name}.weight"]
            heads = {"wq": config.num_attention_heads, "wk": config.num_key_value_heads}.get(meta)
            whole[f"{there}attention.{meta}.weight"] = (interleaved(weight, heads) if heads else weight, axis)
        for meta, (name, axis) in _FEED_FORWARD.items():
            whole[f"{there}feed_forward.{meta}.weight"] = (weights[f"{here}mlp.{name}.weight"], axis)
        whole[f"{there}attention_norm.weight"] = (weights[f"{here}input_layernorm.weight"], None)
        whole[f"{there}ffn_norm.weight"] = (weights[f"{here}post_attention_layernorm.weight"], None)
    frequencies = 1.0 / 10000 ** (torch.arange(0, config.head_dim, 2).float() / config.head_dim)
    names = {1: [f"layers.{n}.attention.inner_attention.rope.freqs" for n in range(config.num_hidden_layers)], 2: ["rope.freqs"]}
    folder.mkdir(parents=True)
    for rank in range(shards):
        part = {
            name: tensor if axis is None else tensor.chunk(shards, axis)[rank].clone() for name, (tensor, axis) in whole.items()
        }
        torch.save(part | dict.fromkeys(names.get(generation, ()), frequencies), folder / f"consolidated.{rank:02d}.pth")
    params = dict(dim=config.hidden_size, multiple_of=16, n_heads=config.num_attention_heads, n_layers=config.num_hidden_layers)
    params |= dict(norm_eps=config.rms_norm_eps, vocab_size=-1)
    if config.num_key_value_heads != config.num_attention_heads:
        params["n_kv_heads"] = config.num_key_value_heads
    (folder / "params.json").write_text(json.dumps(params | changed))
    return folder
